"""Tables that others computed (parquet, CSV, TSV, JSONL), read into columns with a uid for each row."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from rebus.errors import DataError, nearest
from rebus.storage import download, file_version, is_remote, list_versions
from rebus.uids import uids_as_numbers

FORMATS = (".parquet", ".csv", ".tsv", ".jsonl")
BATCH_ROWS = 1 << 17
How = Literal["number", "integer_text", "text"]

INTEGER_LINE = r"^[ \t\r,;]*(?P<value>[+-]?[0-9]{1,9})[ \t\r,;]*(?:\n|$)"
"""Raw answers of MLM-Filter, as Open-Qwen2VL's filter reads them: the first line, without the commas and semicolons
around it, is a whole number, or there is no score. `Score: 85` and `85/100` say none."""


@dataclass(frozen=True)
class Wanted:
    """What is read of each table. uid: the column that names the sample. columns: our name -> (theirs, how it is
    read). only: column -> the value that a row must have to count."""

    uid: str
    columns: dict[str, tuple[str, How]]
    only: dict[str, str]

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys([self.uid, *(name for name, _ in self.columns.values()), *self.only]))

    @property
    def numeric(self) -> set[str]:
        """Columns that are wanted as numbers alone."""
        as_text = {name for name, how in self.columns.values() if how != "number"} | {self.uid, *self.only}
        return {name for name, _ in self.columns.values()} - as_text


@dataclass(frozen=True)
class Rows:
    """Some rows of one table. uids: [n] of dtype `<u8,<u8`. rows: [n] their numbers in the table. columns: name -> [n]
    float32, or Arrow strings. num_read: rows of the table altogether; num_apart: those that `only` leaves out;
    num_nameless: those without a uid."""

    uids: np.ndarray
    rows: np.ndarray
    columns: dict[str, Any]
    num_read: int
    num_apart: int
    num_nameless: int


def find_tables(place: str) -> list[str]:
    """The tables that a file, a folder or a pattern of names in a folder (`meta/*_su.parquet`) means, in name order.

    Raises: DataError where there is none.
    """
    folder, _, name = place.rstrip("/").rpartition("/")
    is_pattern = any(mark in name for mark in "*?[") and (is_remote(place) or not Path(place).exists())
    if not is_pattern and place.lower().endswith(FORMATS) and (is_remote(place) or not Path(place).is_dir()):
        file_version(place)
        return [place]
    folder, pattern = (folder or "/" * place.startswith("/") or ".", name) if is_pattern else (place, "*")
    listed = list_versions(folder, "")
    found = [one for one in listed if fnmatchcase(one.rpartition("/")[2], pattern) and one.lower().endswith(FORMATS)]
    if not found:
        raise DataError(f"no table at {place}: a file or a folder of {', '.join(FORMATS)} is wanted.")
    return found


def read_rows(place: str, wanted: Wanted) -> Rows:
    """Reads the wanted columns of one table. Raises: DataError where it is damaged, lacks a column, or a value is not
    what the recipe says."""
    parts: list[tuple[np.ndarray, np.ndarray, dict[str, Any]]] = []
    num_read = num_apart = num_nameless = 0
    with _at_hand(place) as path, _said(place):
        for batch in _batches(path, place, wanted):
            counts, named = _mask(batch, wanted)
            rows = np.flatnonzero(counts & named)
            kept = batch.take(pa.array(rows))
            columns = {ours: _convert(kept[theirs], how, theirs) for ours, (theirs, how) in wanted.columns.items()}
            parts.append((uids_as_numbers(kept[wanted.uid]), rows + num_read, columns))
            num_read += len(batch)
            num_apart += int((~counts).sum())
            num_nameless += int((counts & ~named).sum())
    nothing = {ours: _nothing(how) for ours, (_, how) in wanted.columns.items()}
    joined = {ours: join([none, *(part[2][ours] for part in parts)]) for ours, none in nothing.items()}
    uids = np.concatenate([uids_as_numbers(pa.array([], pa.string())), *(part[0] for part in parts)])
    rows = np.concatenate([np.empty(0, dtype=np.int64), *(part[1] for part in parts)])
    return Rows(uids, rows, joined, num_read, num_apart, num_nameless)


def _nothing(how: How) -> Any:
    """A column of an empty table."""
    return pa.array([], pa.large_string()) if how == "text" else np.empty(0, dtype=np.float32)


def join(pieces: list[Any]) -> Any:
    """One column of several: numpy arrays, or Arrow strings in one piece."""
    return np.concatenate(pieces) if isinstance(pieces[0], np.ndarray) else pa.concat_arrays(pieces)


@contextmanager
def _at_hand(place: str) -> Iterator[Path]:
    """A table on this machine; a remote one is fetched whole and let go again, for it is read from end to end."""
    if not is_remote(place):
        yield Path(place)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / place.rpartition("/")[2]
        download(place, path)
        yield path


@contextmanager
def _said(place: str) -> Iterator[None]:
    """Arrow's and our own words about a value, with the file it lies in."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{place} cannot be read as a table: {error}") from error
    except DataError as error:
        raise error if place in str(error) else DataError(f"{place}: {error}") from error


def _batches(path: Path, place: str, wanted: Wanted) -> Iterator[pa.RecordBatch]:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        with pq.ParquetFile(path) as file:
            _check_names(place, file.schema_arrow.names, wanted)
            yield from file.iter_batches(BATCH_ROWS, columns=wanted.names)
    elif suffix == ".jsonl" and path.stat().st_size:
        schema = pa.schema([(name, pa.float64() if name in wanted.numeric else pa.string()) for name in wanted.names])
        options = pa.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
        yield from pa.json.read_json(path, parse_options=options).combine_chunks().to_batches()
    elif suffix != ".jsonl":
        delimiter = "\t" if suffix == ".tsv" else ","
        parse = pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
        with pa.csv.open_csv(path, parse_options=parse) as file:
            _check_names(place, file.schema.names, wanted)
        texts = {name: pa.string() for name in wanted.names}
        convert = pa.csv.ConvertOptions(include_columns=wanted.names, column_types=texts, strings_can_be_null=True)
        with pa.csv.open_csv(path, parse_options=parse, convert_options=convert) as file:
            yield from file


def _check_names(place: str, found: list[str], wanted: Wanted) -> None:
    for name in wanted.names:
        if name not in found:
            raise DataError(f"{place} has no column '{name}'{nearest(name, found)}; it has {', '.join(found)}.")


def _mask(batch: pa.RecordBatch, wanted: Wanted) -> tuple[np.ndarray, np.ndarray]:
    """[n] whether `only` lets a row count; [n] whether it has a uid."""
    counts = np.ones(len(batch), dtype=bool)
    for name, value in wanted.only.items():
        counts &= pc.fill_null(pc.equal(_as_text(batch[name]), value), False).to_numpy(zero_copy_only=False)
    return counts, pc.is_valid(batch[wanted.uid]).to_numpy(zero_copy_only=False)


def _convert(values: pa.Array, how: How, name: str) -> Any:
    if how == "text":
        return _as_text(values).cast(pa.large_string())
    if how == "integer_text" and not _is_number(values.type):
        values = pc.struct_field(pc.extract_regex(_as_text(values), INTEGER_LINE), "value")
        values = pc.if_else(pc.equal(values, ""), None, values)
    try:
        numbers = (values if _is_number(values.type) else _as_text(values)).cast(pa.float64())
    except pa.ArrowInvalid as error:
        raise DataError(
            f"column '{name}' holds what is no number ({error}). Read it as `{{column: {name}, read: text}}`, or as "
            "`read: integer_text`, which takes the number of the first line and leaves what has none without a value."
        ) from error
    return numbers.to_numpy(zero_copy_only=False).astype(np.float32)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)


def _as_text(values: pa.Array) -> pa.Array:
    return values if pa.types.is_string(values.type) else values.cast(pa.string())
