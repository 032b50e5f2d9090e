"""Parquet as data sets on the hub have it, pictures inside: read by batches of rows, never a whole file. What is held
is a page of the column of pictures, twice: writers put up to 1024 rows of a row group into one (measured: 1.2 GB for a
page of 600 MB, 0.2 GB for the same rows in pages of 30 MB). Fewer `num_workers` hold fewer pages.

FineVision (`images`, `texts` of user and assistant), chat `messages` (OpenAI's typed parts too), LLaVA's
`conversations`, interleaved `texts`, and pictures with a `caption` or `text`.
"""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rebus.errors import DataError
from rebus.shards.assemble import load_json, uid_of
from rebus.shards.damage import (
    BAD_JSON,
    BAD_PARQUET,
    BAD_UTF8,
    MISSING_CAPTION,
    MISSING_IMAGE,
    DamagedSampleError,
)
from rebus.shards.sources import conversations
from rebus.shards.sources.files import read_images
from rebus.shards.sources.pieces import Piece
from rebus.shards.sources.tables import Row

TEXTS = ("messages", "conversations", "texts", "caption", "text")  # the first of these that a file has decides
PICTURES = ("images", "image")
FORMS = (
    "`images` and `texts` (FineVision), `messages`, `conversations` (LLaVA, with `image` or `images`), "
    "`image` or `images` with `caption` or `text`"
)
BATCH_ROWS = 16  # decoded at once: pictures of a few megabytes each
BUFFER_BYTES = 2**20  # of a column chunk, which may be gigabytes
UNREADABLE = (pa.ArrowException, OSError)


def find_pieces(input: Path, rows_per_piece: int) -> Iterator[Piece]:
    """Yields stretches of rows, none across files. A file whose footer is damaged is a piece of no row.

    input: a parquet file, or a folder with such files at any depth. Raises: DataError where there is none, where
    none can be read, or where the columns of one are no known form.
    """
    files = [input] if input.is_file() else sorted(input.rglob("*.parquet"))
    counts = [_count_rows(file) for file in files]
    if all(count is None for count in counts):
        found = f"none of {len(files)} can be read, {files[0]} first" if files else "there is none"
        raise DataError(f"{input}: a parquet file or a folder of such files is wanted, but {found}.")
    number = first_row = 0
    for file, count in zip(files, counts, strict=True):
        for start in range(0, count or 1, rows_per_piece):
            num_rows = min(rows_per_piece, (count or 0) - start) if count else 0
            if num_rows or count is None:
                yield Piece(number, str(file), first_row, num_rows, start=start)
                number, first_row = number + 1, first_row + num_rows


def _count_rows(file: Path) -> int | None:
    """None where the footer is damaged."""
    try:
        with pq.ParquetFile(file) as parquet:
            _wanted_columns(file, parquet.schema_arrow)
            return int(parquet.metadata.num_rows)
    except UNREADABLE:
        return None


def _wanted_columns(file: Path, schema: pa.Schema) -> list[str]:
    """The columns of the form, and those of one value a row, which become metadata. Raises: DataError."""
    text = next((name for name in TEXTS if name in schema.names), None)
    pictures = [name for name in PICTURES if name in schema.names]
    if text is None or (text in ("caption", "text") and not pictures):
        raise DataError(f"{file} has the columns {', '.join(schema.names)}; forms that are read: {FORMS}.")
    nested = {field.name for field in schema if pa.types.is_nested(field.type) or _is_binary(field.type)}
    return [name for name in schema.names if name == text or name in pictures or name not in nested]


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)


def read_piece(piece: Piece) -> Iterator[tuple[str, Row]]:
    """Yields (key, record) of every row, or in its place what is wrong with it; the key is its number in the input.

    Where the file breaks off, one damage stands for the rows that are lost.
    """
    file, done = Path(piece.file), 0
    try:
        with pq.ParquetFile(file, buffer_size=BUFFER_BYTES, pre_buffer=False) as parquet:
            columns = _wanted_columns(file, parquet.schema_arrow)
            for batch in _read_stretch(parquet, columns, piece.start, piece.num_rows):
                for row in _rows(batch):
                    yield f"{piece.first_row + done:09d}", row
                    done += 1
    except UNREADABLE as error:
        lost = f"rows {piece.start + done} to {piece.start + piece.num_rows - 1}" if piece.num_rows else "all of it"
        key = f"{piece.first_row + done:09d}" if piece.num_rows else file.name.replace(".", "_")
        yield key, DamagedSampleError(BAD_PARQUET, f"{file}, {lost}: {error}")


def _read_stretch(parquet: pq.ParquetFile, columns: list[str], start: int, num_rows: int) -> Iterator[pa.RecordBatch]:
    """Only the row groups that hold wanted rows are opened; of the first one the rows before are passed over."""
    end, group_start = start + num_rows, 0
    for group in range(parquet.num_row_groups):
        group_end = group_start + parquet.metadata.row_group(group).num_rows
        if group_start < end and group_end > start:
            position = group_start
            for batch in parquet.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False):
                first, last = max(start - position, 0), min(end - position, batch.num_rows)
                if first < last:
                    yield batch.slice(first, last - first)
                position += batch.num_rows
                if position >= end:
                    return
        group_start = group_end


def _rows(batch: pa.RecordBatch) -> list[Row]:
    """A row whose text is not UTF-8 spoils no other."""
    try:
        return list(batch.to_pylist())
    except UnicodeDecodeError as error:
        if batch.num_rows == 1:
            return [DamagedSampleError(BAD_UTF8, str(error))]
        return [row for number in range(batch.num_rows) for row in _rows(batch.slice(number, 1))]


def build(record: dict[str, Any], root: Path) -> dict[str, bytes]:
    """Members of one row. root: the folder that names of pictures start from, or a file in it.

    Raises: DamagedSampleError.
    """
    root = root if root.is_dir() else root.parent
    form = next((name for name in TEXTS if name in record), "")
    value = record.get(form)
    if value is None:
        raise DamagedSampleError(MISSING_CAPTION, f"`{form}` is null")
    if form in ("caption", "text"):
        return _caption(record, root, value)
    entries = _entries(form, value)
    if form == "texts" and any(entry is None or isinstance(entry, str) for entry in entries):
        return _page(record, root, entries)
    return _conversation(record, root, [turn for entry in entries for turn in _turns(entry)])


def _caption(record: dict[str, Any], root: Path, text: Any) -> dict[str, bytes]:
    if not isinstance(text, str):
        raise DamagedSampleError(BAD_JSON, f"the caption is a {type(text).__name__}")
    return _members(record, {**read_images(root, _pictures(record)), "txt": text.encode()}, {})


def _page(record: dict[str, Any], root: Path, texts: list[Any]) -> dict[str, bytes]:
    """OBELICS' parallel lists; what stands for a picture in the json is its place."""
    slots = record.get("images") or []
    images = [None if slot is None else f"place {place}" for place, slot in enumerate(slots)]
    members = read_images(root, [_picture(slot) for slot in slots if slot is not None])
    return _members(record, members, {"texts": texts, "images": images})


def _conversation(record: dict[str, Any], root: Path, turns: list[dict[str, Any]]) -> dict[str, bytes]:
    """Pictures that no turn has a place for come before the first user's words."""
    chat = {"messages": turns, "images": _pictures(record)}
    stored, pictures = conversations.survey(chat)
    return _members(record, read_images(root, pictures), {"messages": stored["messages"]})


def _members(record: Mapping[str, Any], members: dict[str, bytes], content: dict[str, Any]) -> dict[str, bytes]:
    taken = {*TEXTS, *PICTURES, "text_list", "image_info"}
    metadata = {name: value for name, value in record.items() if name not in taken and _is_scalar(value)} | content
    uid = uid_of(record, {**members, "json": json.dumps(metadata, ensure_ascii=False).encode()})
    return {**members, "json": json.dumps({**metadata, "uid": uid}, ensure_ascii=False).encode()}


def _is_scalar(value: Any) -> bool:
    return isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))


def _entries(form: str, value: Any) -> list[Any]:
    """The list of turns; some sets keep it as a string of JSON."""
    if isinstance(value, str):
        value = load_json(value.encode())
    if not isinstance(value, list):
        raise DamagedSampleError(BAD_JSON, f"`{form}` is a {type(value).__name__}, not a list")
    return value


def _turns(entry: Any) -> list[dict[str, Any]]:
    """One entry as chat messages: FineVision's is a question and its answer, the others' one turn."""
    if not isinstance(entry, dict):
        raise DamagedSampleError(BAD_JSON, f"a turn is a {type(entry).__name__}, not an object")
    if "user" in entry or "assistant" in entry:
        return [{"role": role, "content": entry[role]} for role in ("user", "assistant") if entry.get(role) is not None]
    role, content = ("from", "value") if entry.get("from") is not None else ("role", "content")
    return [{"role": entry.get(role), "content": _content(entry.get(content))}]


def _content(content: Any) -> Any:
    """Parquet gives every typed part all fields of all types: those of others are null."""
    if not isinstance(content, list):
        return content
    return [_filled(part) if isinstance(part, dict) else part for part in content]


def _filled(part: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in part.items() if value is not None}


def _pictures(record: Mapping[str, Any]) -> list[Any]:
    """Bytes, paths or data: URIs, in order."""
    found: Any = next((record[name] for name in PICTURES if record.get(name) is not None), [])
    return [_picture(picture) for picture in (found if isinstance(found, list) else [found])]


def _picture(value: Any) -> bytes | str:
    """One picture: the hub's {bytes, path}, the bytes alone, or the name of a file."""
    if isinstance(value, dict):
        value = value.get("bytes") if value.get("bytes") is not None else value.get("path")
    if not isinstance(value, bytes | str):
        raise DamagedSampleError(MISSING_IMAGE, f"a picture is a {type(value).__name__}, not bytes or a path")
    return value
