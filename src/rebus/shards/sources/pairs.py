"""Images in a folder and a table of `file`, `caption`; other columns become metadata."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rebus.errors import DataError, nearest
from rebus.shards.assemble import uid_of
from rebus.shards.damage import BAD_JSON, MISSING_CAPTION, DamagedSampleError
from rebus.shards.sources import tables
from rebus.shards.sources.files import read_images
from rebus.shards.sources.pieces import Piece
from rebus.shards.sources.tables import read_piece

__all__ = ["build", "find_pieces", "read_piece"]

COLUMNS = ("file", "caption")


def find_pieces(table: Path, rows_per_piece: int) -> Iterator[Piece]:
    """Raises: DataError where the first whole row lacks one of the two columns."""
    checked = False
    for piece in tables.find_pieces(table, rows_per_piece):
        checked = checked or _check_columns(piece)
        yield piece


def _check_columns(piece: Piece) -> bool:
    row = next((record for _, record in read_piece(piece) if isinstance(record, dict)), None)
    for column in COLUMNS:
        if row is not None and column not in row:
            found = f"its columns are {', '.join(map(str, row))}{nearest(column, map(str, row))}"
            raise DataError(f"{piece.file} has no column '{column}': {found}.")
    return row is not None


def build(record: dict[str, Any], root: Path) -> dict[str, bytes]:
    """Members of one pair. Raises: DamagedSampleError."""
    metadata = dict(record)
    caption = metadata.pop("caption", None)
    if caption is None:
        raise DamagedSampleError(MISSING_CAPTION)
    if not isinstance(caption, str):
        raise DamagedSampleError(BAD_JSON, f"the caption is a {type(caption).__name__}")
    members = {**read_images(root, [metadata.get("file")]), "txt": caption.encode()}
    metadata["uid"] = uid_of(metadata, members)
    return {**members, "json": json.dumps(metadata, ensure_ascii=False).encode()}
