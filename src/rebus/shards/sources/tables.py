"""Rows of CSV, TSV, JSON and JSONL tables by byte range: found in one pass of bounded memory, read by one seek each."""

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from rebus.errors import DataError
from rebus.shards.assemble import parse_json
from rebus.shards.damage import BAD_UTF8, DamagedSampleError
from rebus.shards.sources.arrays import scan_array
from rebus.shards.sources.pieces import Piece

Row = dict[str, Any] | DamagedSampleError
Span = tuple[int, int]
"""Byte offset and length of a row."""

BAD_CSV = "bad CSV"
BOM = "ï»¿"  # the bytes of a UTF-8 byte order mark, read as latin-1
BLOCK_BYTES = 4 * 2**20
MAX_FIELD_CHARS = 2**24  # Python's own limit of 131,072 ends the whole file at one long field


def scan_rows(path: Path, block_bytes: int = BLOCK_BYTES) -> Iterator[Span]:
    """Yields where each row lies, a CSV's header left out. The format follows from the suffix.

    block_bytes: how much of a JSON array is held at once, a longer row aside. Raises: DataError where the table is
    missing, of another format, or a JSON array that cannot be followed to its end.
    """
    scanners: dict[str, Callable[[], Iterator[Span]]] = {
        ".csv": lambda: islice(_scan_csv(path), 1, None),
        ".tsv": lambda: islice(_scan_csv(path), 1, None),
        ".jsonl": lambda: _scan_lines(path),
        ".json": lambda: scan_array(path, block_bytes),
    }
    if path.suffix.lower() not in scanners:
        raise DataError(f"{path} must end in one of {', '.join(scanners)}: the format follows from it.")
    if not path.is_file():
        raise DataError(f"no table at {path}.")
    return scanners[path.suffix.lower()]()


def find_pieces(path: Path, rows_per_piece: int) -> Iterator[Piece]:
    """Yields the table in stretches of `rows_per_piece` rows; only one is held at a time."""
    spans = scan_rows(path)
    first_row = 0
    for number, stretch in enumerate(iter(lambda: list(islice(spans, rows_per_piece)), [])):
        places = np.array(stretch, dtype=np.int64)  # [rows, 2]
        yield Piece(number, str(path), first_row, len(stretch), places[:, 0].copy(), places[:, 1].copy())
        first_row += len(stretch)


def read_blobs(piece: Piece) -> Iterator[tuple[str, bytes]]:
    """Yields (key, bytes) of every row; the key is the row's number in the whole table."""
    if piece.offsets is None or piece.lengths is None:
        raise DataError(f"{piece.file}: a piece of a table names the bytes of its rows")
    with open(piece.file, "rb", buffering=2**20) as file:
        for row, (offset, length) in enumerate(zip(piece.offsets.tolist(), piece.lengths.tolist(), strict=True)):
            file.seek(offset)
            yield f"{piece.first_row + row:09d}", file.read(length)


def read_piece(piece: Piece) -> Iterator[tuple[str, Row]]:
    """Yields (key, record) of every row, or in its place what is wrong with it."""
    path = Path(piece.file)
    header = read_header(path)
    for key, blob in read_blobs(piece):
        yield key, parse_row(path, blob, header)


def read_header(path: Path) -> list[str] | None:
    """The names of a CSV's or TSV's columns; None for JSON and for an empty table. Raises: DataError."""
    if not _is_csv(path):
        return None
    for offset, length in _scan_csv(path):
        with open(path, "rb") as file:
            file.seek(offset)
            try:
                return _fields(path, file.read(length))
            except (UnicodeDecodeError, csv.Error) as error:
                raise DataError(f"{path}: its first line names no columns: {error}.") from error
    return None


def parse_row(path: Path, blob: bytes, header: Sequence[str] | None = None) -> Row:
    """The record in the bytes of one row, or what is wrong with it. path: for its suffix. header: a CSV's columns."""
    try:
        if not _is_csv(path):
            return parse_json(blob)
        # A surplus field has no name and a missing one no value: neither is kept.
        return {name: value for name, value in zip(header or (), _fields(path, blob), strict=False) if name}
    except DamagedSampleError as error:
        return error
    except UnicodeDecodeError as error:
        return DamagedSampleError(BAD_UTF8, str(error))
    except csv.Error as error:
        return DamagedSampleError(BAD_CSV, str(error))


def _is_csv(path: Path) -> bool:
    return path.suffix.lower() in (".csv", ".tsv")


def _delimiter(path: Path) -> str:
    return "\t" if path.suffix.lower() == ".tsv" else ","


def _fields(path: Path, blob: bytes) -> list[str]:
    csv.field_size_limit(MAX_FIELD_CHARS)
    return next(csv.reader(io.StringIO(blob.decode("utf-8"), newline=""), delimiter=_delimiter(path), strict=True))


def _scan_csv(path: Path) -> Iterator[Span]:
    """Rows with the header: each is as long as the lines that the csv reader took for it."""
    csv.field_size_limit(MAX_FIELD_CHARS)
    taken = 0

    def lines() -> Iterator[str]:
        nonlocal taken
        with open(path, encoding="latin-1", newline="") as file:  # one character a byte, line ends as they are
            first = file.readline()
            taken = len(first)
            yield first.removeprefix(BOM)
            for line in file:
                taken += len(line)
                yield line

    with open(path, "rb") as file:
        start = 3 if file.read(3) == BOM.encode("latin-1") else 0
    rows = csv.reader(lines(), delimiter=_delimiter(path), strict=True)
    while True:
        try:
            filled = bool(next(rows))
        except StopIteration:
            return
        except csv.Error:
            filled = True  # parse_row says what is wrong with it
        if filled:
            yield start, taken - start
        start = taken


def _scan_lines(path: Path) -> Iterator[Span]:
    start = 0
    with open(path, "rb") as file:
        for line in file:
            skipped = 3 if not start and line.startswith(BOM.encode("latin-1")) else 0
            if length := len(line.rstrip()) - skipped:
                yield start + skipped, length
            start += len(line)
