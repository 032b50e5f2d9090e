"""Rows of foreign tables in the order of their uids, so that a batch of samples finds its rows by bisection."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rebus.errors import DataError
from rebus.scores.tables_in import Rows, join
from rebus.uids import order_of, uids_as_numbers


@dataclass(frozen=True)
class Join:
    """N uids in ascending order, each once, and what the tables say of them.

    high, low: [N] uint64, the halves of the uid. columns: name -> [N] float32 or Arrow strings. file, row: [N] where a
    row came from. num_repeated: rows left out because an earlier one had their uid; num_differing: those of them that
    said something else.
    """

    high: np.ndarray
    low: np.ndarray
    columns: dict[str, Any]
    file: np.ndarray
    row: np.ndarray
    num_repeated: int
    num_differing: int

    def find(self, uids: Sequence[str]) -> np.ndarray:
        """[len(uids)] places among the N, -1 where the tables do not name a uid. Each costs log2(N) comparisons."""
        numbers = uids_as_numbers(uids)
        high, low = np.ascontiguousarray(numbers["f0"]), numbers["f1"]
        place = np.searchsorted(self.high, high)
        found = np.full(len(uids), -1)
        while True:  # once, but where uids share their high half
            inside = np.minimum(place, len(self.high) - 1)
            alike = (place < len(self.high)) & (self.high[inside] == high)
            found = np.where(alike & (self.low[inside] == low), inside, found)
            if not (alike & (found < 0)).any():
                return found
            place = place + 1


def join_rows(tables: list[Rows], names: list[str], repeated: Literal["refuse", "first"]) -> Join:
    """Joins tables; of rows with the same uid the first counts. names: what the tables are called.

    Raises: DataError where a uid has two different values and `repeated` is `refuse`, or where there is no row at all.
    """
    uids = np.concatenate([table.uids for table in tables])
    if not len(uids):
        raise DataError(f"no row of {names[0]} and what lies beside it counts: none has a uid and passes `only`.")
    order = order_of(uids)  # stable: equal uids stay in the order of the files
    high, low = uids["f0"][order], uids["f1"][order]
    file = np.repeat(np.arange(len(tables), dtype=np.int32), [len(table.uids) for table in tables])[order]
    row = np.concatenate([table.rows for table in tables]).astype(np.int32)[order]
    columns = {name: _taken(join([table.columns[name] for table in tables]), order) for name in tables[0].columns}
    again = np.zeros(len(order), dtype=bool)
    again[1:] = (high[1:] == high[:-1]) & (low[1:] == low[:-1])
    later = np.flatnonzero(again)
    differs = np.zeros(len(later), dtype=bool)
    for name, values in columns.items():
        differs |= (differs_here := _differ(values, later))
        if repeated == "refuse" and differs_here.any():
            place = int(later[np.argmax(differs_here)])
            uid = f"{int(high[place]):016x}{int(low[place]):016x}"
            first, second = (f"{_plain(values[at])!r} in {names[file[at]]}" for at in (place - 1, place))
            raise DataError(
                f"uid {uid} has two values of '{name}': {first} and {second}. Leave one file out, or say "
                "`repeated: first`: the first file in order of names then counts."
            )
    kept = np.flatnonzero(~again)
    columns = {name: _taken(values, kept) for name, values in columns.items()}
    return Join(high[kept], low[kept], columns, file[kept], row[kept], len(later), int(differs.sum()))


def values_at(values: Any, places: np.ndarray) -> np.ndarray:
    """The values [B] at the places that `find` gave; NaN or None where it gave -1."""
    if isinstance(values, np.ndarray):
        return np.where(places < 0, np.float32(np.nan), values[np.maximum(places, 0)])
    return values.take(pa.array(places, mask=places < 0)).to_numpy(zero_copy_only=False).astype(object)


def _taken(values: Any, order: np.ndarray) -> Any:
    return values[order] if isinstance(values, np.ndarray) else values.take(pa.array(order))


def _differ(values: Any, later: np.ndarray) -> np.ndarray:
    """[len(later)] whether a value is another than the one before it; no value equals no value."""
    if isinstance(values, np.ndarray):
        return ~((values[later] == values[later - 1]) | (np.isnan(values[later]) & np.isnan(values[later - 1])))
    after, before = values.take(pa.array(later)), values.take(pa.array(later - 1))
    same = pc.fill_null(pc.equal(after, before), False)
    both_none = pc.and_(pc.is_null(after), pc.is_null(before))
    return ~pc.or_(same, both_none).to_numpy(zero_copy_only=False)


def _plain(value: Any) -> Any:
    return value.as_py() if isinstance(value, pa.Scalar) else float(value)
