"""Rows of CSV, TSV, JSON and JSONL files, one at a time; a row that cannot be read is one bad row."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rebus.errors import DataError
from rebus.shards.damage import BAD_JSON, BAD_UTF8, DamagedSampleError

Row = dict[str, Any] | DamagedSampleError

MAX_FIELD_CHARS = 2**24  # Python's own limit of 131,072 ends the whole file at one long field


def read_rows(path: Path) -> Iterator[Row]:
    """Yields the rows of a table, or in its place what is wrong with one. The format follows from the suffix."""
    readers = {".csv": _read_csv, ".tsv": _read_csv, ".jsonl": _read_jsonl, ".json": _read_json}
    if path.suffix.lower() not in readers:
        raise DataError(f"{path} must end in one of {', '.join(readers)}: the format follows from it.")
    if not path.is_file():
        raise DataError(f"no table at {path}.")
    return readers[path.suffix.lower()](path)


def _read_csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(MAX_FIELD_CHARS)
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                yield DamagedSampleError("bad CSV", f"line {rows.line_num}: {error}")
                continue
            # A surplus field comes under the name None, a missing one as the value None.
            yield _refuse_surrogates({name: value for name, value in row.items() if name and value is not None})


def _read_jsonl(path: Path) -> Iterator[Row]:
    with open(path, "rb") as file:
        for line in file:
            if line.strip():
                yield _read_object(line)


def _read_object(line: bytes) -> Row:
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return DamagedSampleError(BAD_UTF8, str(error))
    except (ValueError, RecursionError) as error:
        return DamagedSampleError(BAD_JSON, str(error))
    return _check_object(value)


def _read_json(path: Path) -> Iterator[Row]:
    """A JSON array is one value: damage in it costs the file."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}. As .jsonl, a bad line would cost that line alone.") from error
    if not isinstance(rows, list):
        raise DataError(f"{path} must hold an array of samples, not a {type(rows).__name__}.")
    for row in rows:
        yield _check_object(row)


def _check_object(value: Any) -> Row:
    if not isinstance(value, dict):
        return DamagedSampleError(BAD_JSON, f"an object is wanted, not a {type(value).__name__}")
    return _refuse_surrogates(value)


def _refuse_surrogates(row: dict[str, Any]) -> Row:
    """Half characters (undecodable bytes, lone \\ud83d escapes) cannot be written as UTF-8."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        return DamagedSampleError(BAD_UTF8, str(error))
    return row
