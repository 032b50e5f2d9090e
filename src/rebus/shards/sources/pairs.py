"""Images in a folder and a table of `file`, `caption`; other columns become metadata."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rebus.errors import DataError, nearest
from rebus.shards.assemble import uid_of
from rebus.shards.damage import BAD_JSON, MISSING_CAPTION, DamagedSampleError
from rebus.shards.sources.files import read_images
from rebus.shards.sources.tables import Row, read_rows

COLUMNS = ("file", "caption")


def read_records(table: Path) -> Iterator[Row]:
    """Raises: DataError where the first whole row lacks one of the two columns."""
    checked = False
    for row in read_rows(table):
        if isinstance(row, dict) and not checked:
            for column in COLUMNS:
                if column not in row:
                    found = f"its columns are {', '.join(map(str, row))}{nearest(column, map(str, row))}"
                    raise DataError(f"{table} has no column '{column}': {found}.")
            checked = True
        yield row


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
