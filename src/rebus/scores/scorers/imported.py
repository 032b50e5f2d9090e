"""Scores and embeddings that others computed, joined to the pool by uid: DataComp's metadata (parquet and `.npz`),
MLM-Filter's answers, or any parquet, CSV, TSV or JSONL table with a uid column."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from rebus.config import Config, Place
from rebus.errors import DataError
from rebus.fingerprint import fingerprint
from rebus.log import say
from rebus.scores.npz_rows import NpzRows
from rebus.scores.scorer import Opened
from rebus.scores.tables_in import How, Rows, Wanted, find_tables, read_rows
from rebus.scores.uid_join import Join, join_rows, values_at
from rebus.shards.inputs import files_fingerprint
from rebus.storage import file_version, is_remote

IN_TABLE = "in_table"
RESERVED = ("uid", "key", IN_TABLE)


class Column(Config):
    """A column of theirs. read: `number`; `text`; or `integer_text`, a model's raw answer, of which the first line is a
    whole number or says nothing."""

    column: str
    read: How = "number"


class Options(Config):
    """files: tables, folders of tables or patterns (`meta/*_su.parquet`), on this machine or behind URLs. uid: the
    column of 32 hexadecimal digits. columns: our name -> theirs. vectors: our name -> array of the `.npz` of the same
    stem beside each table. only: a row counts where these columns have these values (`{status: success}`).

    repeated: what to do where a uid has two different values: `refuse`, or take the `first` in order of file and row.
    """

    files: Place | list[Place]
    uid: str = "uid"
    columns: dict[str, str | Column] = Field(default_factory=dict)
    vectors: dict[str, str] = Field(default_factory=dict)
    only: dict[str, str] = Field(default_factory=dict)
    repeated: Literal["refuse", "first"] = "refuse"

    @model_validator(mode="after")
    def _check_names(self) -> "Options":
        if not self.columns and not self.vectors:
            raise ValueError("nothing is imported: name some of `columns`, or of `vectors`")
        if taken := [name for name in (*self.columns, *self.vectors) if name in RESERVED]:
            raise ValueError(f"'{taken[0]}' is the name of a column that every table has; call it otherwise")
        if both := set(self.columns) & set(self.vectors):
            raise ValueError(f"'{both.pop()}' is among `columns` and among `vectors`")
        return self

    @property
    def tables(self) -> list[str]:
        places = self.files if isinstance(self.files, list) else [self.files]
        return list(dict.fromkeys(table for place in places for table in find_tables(str(place))))

    @property
    def wanted(self) -> Wanted:
        given = {ours: one if isinstance(one, Column) else Column(column=one) for ours, one in self.columns.items()}
        return Wanted(self.uid, {ours: (one.column, one.read) for ours, one in given.items()}, dict(self.only))


def open_scorer(options: Options) -> Opened:
    """Holds 24 bytes a row and 4 a number: ten million rows with two scores take 320 MB, and while they are joined
    25 s of one core and 1.5 GB. Vectors stay in their files.

    Raises: DataError where a table or column is missing, or values contradict each other.
    """
    places = options.tables
    tables = [read_rows(place, options.wanted) for place in places]
    joined = join_rows(tables, places, options.repeated)
    _report(places, tables, joined)
    num_rows = [table.num_read for table in tables]
    readers = {ours: _open_vectors(theirs, places, num_rows) for ours, theirs in options.vectors.items()}

    def measure(uids: Sequence[str]) -> dict[str, Any]:
        found = joined.find(uids)
        columns = {name: values_at(values, found) for name, values in joined.columns.items()}
        vectors = {name: read(joined, found) for name, read in readers.items()}
        return {IN_TABLE: found >= 0, **columns, **vectors}

    return Opened(look=lambda item: item.uid, measure=measure, pictures=False)


def inputs(options: Options) -> dict[str, str]:
    """Fingerprint of the tables and vectors: names, sizes and spots of the bytes of local files (all bytes of small
    ones), as of raw shards; sizes and ETags of remote ones. DataComp's metadata would take hours to hash whole."""
    places = options.tables
    if options.vectors:
        places += [_beside(place) for place in places]
    versions = [[place.rpartition("/")[2], _version(place)] for place in places]
    return {"files": fingerprint(versions)}


def _version(place: str) -> object:
    if is_remote(place):
        return file_version(place)
    if not Path(place).is_file():
        raise DataError(f"no file at {place}: vectors lie in the .npz of the same stem beside each table.")
    return files_fingerprint(Path(place))


def _beside(place: str) -> str:
    return place[: place.rindex(".")] + ".npz"


def _report(places: list[str], tables: list[Rows], joined: Join) -> None:
    """One line of what the tables hold, and of all that they do not say."""
    missing = {name: _num_missing(values) for name, values in joined.columns.items()}
    counts = [
        (sum(table.num_apart for table in tables), "left out by `only`"),
        (sum(table.num_nameless for table in tables), "without a uid"),
        (joined.num_repeated, "with a uid seen before"),
        (joined.num_differing, "of these with other values, of which the first counts"),
        *((number, f"without a value of {name}") for name, number in missing.items()),
    ]
    notes = "".join(f"; {number:,} {words}" for number, words in counts if number)
    num_rows = sum(table.num_read for table in tables)
    say(f"imported: {num_rows:,} rows of {len(places):,} tables, {len(joined.high):,} uids{notes}")


def _num_missing(values: Any) -> int:
    return int(np.isnan(values).sum()) if isinstance(values, np.ndarray) else values.null_count


def _open_vectors(name: str, tables: list[str], num_rows: list[int]) -> Callable[[Join, np.ndarray], np.ndarray]:
    """Returns (join, places [B]) -> vectors [B, width] of the first file's dtype, NaN where there is no row.

    Raises: DataError where an array has another number of rows than its table, or another width than the first.
    """
    reader, places = NpzRows(name), [_beside(table) for table in tables]
    first = reader.layout(places[0])
    dtype = first.dtype if first.dtype == np.float16 else np.dtype(np.float32)

    def read(joined: Join, found: np.ndarray) -> np.ndarray:
        vectors = np.full((len(found), first.width), np.nan, dtype=dtype)
        at = np.flatnonzero(found >= 0)
        files = joined.file[found[at]]
        for number in np.unique(files).tolist():
            own = at[files == number]
            _check(reader, places[number], num_rows[number], first.width)
            vectors[own] = reader.read(places[number], joined.row[found[own]])
        return vectors

    return read


def _check(reader: NpzRows, place: str, num_rows: int, width: int) -> None:
    layout = reader.layout(place)
    if (layout.num_rows, layout.width) != (num_rows, width):
        raise DataError(
            f"{place} holds {layout.num_rows:,} vectors of {layout.width}, but its table has {num_rows:,} rows and "
            f"the first file vectors of {width}. Rows of table and array must be the same samples."
        )
