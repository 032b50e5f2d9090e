"""The scores of a pool as a page needs them: all columns of a sample of the pairs, joined; and single columns whole."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rebus.report.gather import Artifact, read_json
from rebus.scores.tables import numbers_of, table_files
from rebus.uids import places_of, uids_as_numbers

MAX_ROWS = 200_000  # pairs that ranks, pictures and words are of; a share of 50% is then right to 0.2 points
SEED = 0
NAMES = ("uid", "key")


@dataclass(frozen=True)
class Column:
    """rows: [n] places in the sample that have a value; values: [n] float64, none of them NaN."""

    scorer: str
    name: str
    rows: NDArray[np.int64]
    values: NDArray[np.float64]

    @property
    def title(self) -> str:
        return f"{self.scorer}.{self.name}"

    @property
    def is_constant(self) -> bool:
        return bool(self.values.min() == self.values.max())


@dataclass(frozen=True)
class Scored:
    """num_rows: of the pool. rows: uid, shard (its stem) and every `scorer.column` of at most about MAX_ROWS pairs."""

    scores: Artifact
    num_rows: int
    rows: pa.Table

    @property
    def is_sampled(self) -> bool:
        return self.num_rows > len(self.rows)

    @property
    def note(self) -> str:
        """What a reader should know of the numbers; empty where all pairs were looked at."""
        if not self.is_sampled:
            return ""
        return (
            f"Pictures, words and agreement are of {len(self.rows):,} of the {self.num_rows:,} pairs, drawn by uid "
            f"(seed {SEED}); histograms count all."
        )

    @cached_property
    def numbers(self) -> list[Column]:
        """The columns that can be ordered, those without a single value left out."""
        found = (self._column(name) for name in numbers_of(self.rows))
        return [column for column in found if len(column.values)]

    @cached_property
    def words(self) -> list[str]:
        """Titles of the columns of words and of truths."""
        return [
            field.name
            for field in self.rows.schema
            if (pa.types.is_string(field.type) or pa.types.is_boolean(field.type))
            and field.name not in ("uid", "shard")
        ]

    def _column(self, title: str) -> Column:
        values = _floats(self.rows[title])
        good = np.flatnonzero(np.isfinite(values))
        scorer, _, name = title.partition(".")
        return Column(scorer, name, good, values[good])

    def values(self, title: str) -> NDArray[np.float64]:
        """[rows of the sample], NaN where there is none."""
        values = _floats(self.rows[title])
        return np.where(np.isfinite(values), values, np.nan)

    def uids(self, places: NDArray[np.int64]) -> list[str]:
        return self.rows["uid"].take(pa.array(places, pa.int64())).to_pylist()

    def stems(self, places: NDArray[np.int64]) -> set[str]:
        """The shards that hold some rows."""
        return set(self.rows["shard"].take(pa.array(places, pa.int64())).to_pylist())

    def all_values(self, column: Column) -> NDArray[np.float64]:
        """The column over the whole pool, read anew where only a sample of it is held: 8 bytes a pair."""
        if not self.is_sampled:
            return column.values
        paths = table_files(self.scores.folder / column.scorer)
        values = np.concatenate([_floats(pq.read_table(path, columns=[column.name])[column.name]) for path in paths])
        return values[np.isfinite(values)]


def read_scored(scores: Artifact) -> Scored | None:
    """None where no scorer left a table. A table at a time is held, and what is drawn of it."""
    files = {folder.name: table_files(folder) for folder in sorted(scores.folder.iterdir()) if folder.is_dir()}
    files = {scorer: paths for scorer, paths in files.items() if paths}
    if not files:
        return None
    lengths = {scorer: sum(pq.read_metadata(path).num_rows for path in paths) for scorer, paths in files.items()}
    longest = max(lengths, key=lambda scorer: lengths[scorer])  # saw the undecodable too, where it needs no pixel
    share = min(1.0, MAX_ROWS / max(lengths[longest], 1))
    tables = {scorer: pa.concat_tables(_drawn(paths, share)) for scorer, paths in files.items()}
    wanted = uids_as_numbers(tables[longest]["uid"])
    rows = tables[longest].select(["uid", "shard"])
    for scorer, table in tables.items():
        places = places_of(wanted, uids_as_numbers(table["uid"]))
        order = pa.array(places, mask=places < 0)
        for name in table.column_names:
            if name not in (*NAMES, "shard"):
                rows = rows.append_column(f"{scorer}.{name}", table[name].combine_chunks().take(order))
    return Scored(scores, lengths[longest], rows)


def _drawn(paths: list[Path], share: float) -> Iterator[pa.Table]:
    """The drawn rows of each table with their shard's stem; a pair is drawn for all scorers or for none."""
    for path in paths:
        table = pq.read_table(path)
        if share < 1:
            table = table.filter(pa.array(_lot(uids_as_numbers(table["uid"])) < share))
        yield table.append_column("shard", pa.array([path.stem] * len(table), pa.string()))


def _lot(uids: NDArray[np.void]) -> NDArray[np.float64]:
    """[n] a number of 0..1 for each uid and SEED (the finaliser of SplitMix64, Steele et al. 2014)."""
    mixed = uids["f1"] ^ (uids["f0"] * np.uint64(0x9E3779B97F4A7C15)) ^ np.uint64(SEED)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return (mixed ^ (mixed >> np.uint64(31))) / 2.0**64


def _floats(values: pa.ChunkedArray) -> NDArray[np.float64]:
    return pc.fill_null(values.cast(pa.float64()), float("nan")).to_numpy()


def fates(selection: Artifact, uids: pa.ChunkedArray) -> list[str | None]:
    """For each uid the rule that dropped it, empty where it was kept, None where the selection has no such pair.

    One row group of the selection is held at a time."""
    found: list[str | None] = [None] * len(uids)
    wanted = uids.combine_chunks()
    with pq.ParquetFile(selection.folder / "selection.parquet") as file:
        for batch in file.iter_batches(1 << 20, columns=["uid", "dropped_by"]):
            places = pc.index_in(batch["uid"], value_set=wanted)
            seen = places.is_valid()
            pairs = zip(places.filter(seen).to_pylist(), batch["dropped_by"].filter(seen).to_pylist(), strict=True)
            for place, rule in pairs:
                found[place] = rule
    return found


def examples_of(selection: Artifact) -> dict[str, dict[str, list[dict]]]:
    """By rule, the samples of each side nearest to where it turns; empty where an older version left none."""
    path = selection.folder / "examples.json"
    return {one["rule"]: one for one in read_json(path)} if path.is_file() else {}
