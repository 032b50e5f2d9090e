"""Rows of tables that name pictures by their URL: parquet, CSV, TSV, JSON and JSONL, on disk or in remote storage."""

import datetime
import decimal
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rebus.config import Place
from rebus.errors import DataError, nearest
from rebus.shards.damage import BAD_UTF8, DamagedSampleError
from rebus.shards.download.config import Download
from rebus.shards.download.reasons import BAD_URL
from rebus.shards.sources import tables
from rebus.shards.sources.pieces import Piece
from rebus.storage import download, file_version, is_remote, list_versions, open_file

URL_COLUMNS = ("url",)
CAPTION_COLUMNS = ("caption", "text", "alt")
PARQUET = ".parquet"
TEXT_TABLES = (".csv", ".tsv", ".json", ".jsonl")
BATCH_ROWS = 1024
RECORD = "record"
"""The column of a table of retries that holds the whole row, as JSON, beside `key`."""


@dataclass(frozen=True)
class Slice:
    """The rows of one shard. is_retry: they come from a table of retries, with the keys they had before."""

    piece: Piece
    is_retry: bool = False


@dataclass(frozen=True)
class UrlRow:
    """number: in its shard. record: the row as JSON can say it. carried: its columns but url and caption. damage: why
    it cannot be asked for."""

    key: str
    number: int
    url: str
    caption: str | None
    record: dict[str, Any] = field(default_factory=dict)
    carried: dict[str, Any] = field(default_factory=dict)
    damage: DamagedSampleError | None = None


def list_tables(input: Place) -> dict[str, tuple[object, ...]]:
    """The tables, each with what changes when it does: the file itself, or the parquet files of a folder.

    Raises: DataError where there is none.
    """
    if Path(str(input)).suffix.lower() in (PARQUET, *TEXT_TABLES) and not Path(input).is_dir():
        return {str(input): file_version(str(input))}
    if is_remote(input):
        found = list_versions(str(input), PARQUET)
    else:
        found = {str(path): file_version(str(path)) for path in sorted(Path(input).rglob(f"*{PARQUET}"))}
    if not found:
        known = ", ".join((PARQUET, *TEXT_TABLES))
        raise DataError(f"{input}: a table ({known}) or a folder of parquet files is wanted.")
    return found


def find_slices(input: Place, rows_per_slice: int, cache: Path) -> Iterator[Slice]:
    """Yields the rows of the tables in stretches of one shard each, none across tables.

    cache: a folder for remote tables that can only be read from disk (all but parquet).
    """
    numbers, first_row = count(), 0
    for table in list_tables(input):
        for piece in _pieces(table, rows_per_slice, cache):
            yield Slice(replace(piece, number=next(numbers), first_row=first_row))
            first_row += piece.num_rows


def find_retries(table: Path, first_number: int, rows_per_slice: int) -> Iterator[Slice]:
    """The same of a table of retries, whose first shard has this number."""
    for piece in _parquet_pieces(str(table), rows_per_slice):
        yield Slice(replace(piece, number=first_number + piece.number), is_retry=True)


def count_rows(input: Place) -> int | None:
    """Rows of all tables, where their footers say it."""
    tables_found = list_tables(input)
    if any(not table.lower().endswith(PARQUET) for table in tables_found):
        return None
    return sum(_num_rows(table) for table in tables_found)


def _pieces(table: str, rows: int, cache: Path) -> Iterator[Piece]:
    if table.lower().endswith(PARQUET):
        return _parquet_pieces(table, rows)
    return tables.find_pieces(_on_disk(table, cache), rows)


def _on_disk(table: str, cache: Path) -> Path:
    if not is_remote(table):
        return Path(table)
    target = cache / table.rpartition("/")[2]
    if not target.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        download(table, target)
    return target


def _parquet_pieces(table: str, rows: int) -> Iterator[Piece]:
    num_rows = _num_rows(table)
    for number, start in enumerate(range(0, num_rows, rows)):
        yield Piece(number, table, start, min(rows, num_rows - start), start=start)


def _num_rows(table: str) -> int:
    try:
        with open_file(table) as file, pq.ParquetFile(file) as parquet:
            return int(parquet.metadata.num_rows)
    except pa.ArrowException as error:
        raise DataError(f"{table} is no whole parquet file: {error}. Fetch it again.") from error


def read_rows(one: Slice, options: Download, rows_per_slice: int) -> Iterator[UrlRow]:
    """Yields the rows of a slice. Raises: DataError where the table lacks a column or cannot be read."""
    width, piece = len(str(rows_per_slice - 1)), one.piece
    columns: tuple[str, str] | None = None
    for number, record in enumerate(_records(piece)):
        key = f"{piece.number:0{options.digits}d}{number:0{width}d}"
        if isinstance(record, DamagedSampleError):
            yield UrlRow(key, number, "", None, damage=record)
            continue
        if one.is_retry:
            key, record = str(record["key"]), json.loads(record[RECORD])
        columns = columns or _columns(piece.file, record, options)
        yield _row(key, number, record, columns)


def _row(key: str, number: int, record: Mapping[str, Any], columns: tuple[str, str]) -> UrlRow:
    plain = {str(name): jsonable(value) for name, value in record.items()}
    url, caption = (plain.get(name) for name in columns)
    carried = {name: value for name, value in plain.items() if name not in columns}
    damage = None
    if not isinstance(url, str) or not url.strip():
        damage = DamagedSampleError(BAD_URL, f"the row's URL is {url!r}"[:200])
    elif caption is not None and not isinstance(caption, str):
        damage = DamagedSampleError(BAD_UTF8, f"the caption is a {type(caption).__name__}")
    url, caption = (value if isinstance(value, str) else None for value in (url, caption))
    return UrlRow(key, number, url or "", caption, plain, carried, damage)


def _columns(table: str, record: Mapping[str, Any], options: Download) -> tuple[str, str]:
    """The names of the columns of URL and caption. Raises: DataError."""
    if options.verify_hash is not None:
        _find(table, record, (options.verify_hash.column,), "verify_hash.column", True)
    url, caption = options.url_column, options.caption_column
    return (
        _find(table, record, (url,) if url else URL_COLUMNS, "url_column", url is not None),
        _find(table, record, (caption,) if caption else CAPTION_COLUMNS, "caption_column", caption is not None),
    )


def _find(table: str, record: Mapping[str, Any], wanted: Iterable[str], option: str, exact: bool) -> str:
    by_name = {name if exact else name.lower(): name for name in record}
    for name in wanted:
        if name in by_name:
            return by_name[name]
    first = next(iter(wanted))
    found = ", ".join(map(str, record))
    raise DataError(
        f"{table} has no column '{first}': its columns are {found}{nearest(first, map(str, record))}. "
        f"`download.{option}` names it."
    )


def _records(piece: Piece) -> Iterator[tables.Row]:
    if piece.offsets is None:
        yield from _parquet_records(piece)
    else:
        yield from (record for _, record in tables.read_piece(piece))


def _parquet_records(piece: Piece) -> Iterator[tables.Row]:
    """Only the row groups that hold wanted rows are opened; of the first one the rows before are passed over."""
    end, position = piece.start + piece.num_rows, 0
    try:
        with open_file(piece.file) as file, pq.ParquetFile(file) as parquet:
            for group in range(parquet.num_row_groups):
                size = parquet.metadata.row_group(group).num_rows
                if position < end and position + size > piece.start:
                    yield from _of_group(parquet, group, piece.start - position, end - position)
                position += size
    except pa.ArrowException as error:
        raise DataError(f"{piece.file} is no whole parquet file: {error}. Fetch it again.") from error


def _of_group(parquet: pq.ParquetFile, group: int, start: int, end: int) -> Iterator[tables.Row]:
    position = 0
    for batch in parquet.iter_batches(BATCH_ROWS, row_groups=[group], use_threads=False):
        first, last = max(start - position, 0), min(end - position, batch.num_rows)
        if first < last:
            yield from _plain_rows(batch.slice(first, last - first))
        position += batch.num_rows
        if position >= end:
            return


def _plain_rows(batch: pa.RecordBatch) -> list[tables.Row]:
    """A row whose text is not UTF-8 spoils no other."""
    try:
        return list(batch.to_pylist())
    except UnicodeDecodeError as error:
        if batch.num_rows == 1:
            return [DamagedSampleError(BAD_UTF8, str(error))]
        return [row for number in range(batch.num_rows) for row in _plain_rows(batch.slice(number, 1))]


def jsonable(value: Any) -> Any:
    """A value as JSON can say it: times and decimals as text, bytes and what is not finite as null."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {str(name): jsonable(one) for name, one in value.items()}
        case list() | tuple():
            return [jsonable(one) for one in value]
        case datetime.date() | datetime.time() | datetime.timedelta() | decimal.Decimal():
            return str(value)
    return None
