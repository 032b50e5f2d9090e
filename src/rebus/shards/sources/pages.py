"""Interleaved pages in OBELICS' form: parallel lists `texts` (null where an image stands) and `images` (paths)."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rebus.records import content_uid
from rebus.shards.damage import BAD_JSON, DamagedSampleError
from rebus.shards.sources.files import read_images
from rebus.shards.sources.tables import Row, read_rows


def read_records(table: Path) -> Iterator[Row]:
    return read_rows(table)


def build(record: dict[str, Any], root: Path) -> dict[str, bytes]:
    """Members of one page. Raises: DamagedSampleError."""
    texts, images = record.get("texts"), record.get("images")
    if not isinstance(texts, list) or not isinstance(images, list):
        raise DamagedSampleError(BAD_JSON, "a page has the lists `texts` and `images`")
    members = read_images(root, [name for name in images if name is not None])
    uid = content_uid(*members.values(), json.dumps(texts, ensure_ascii=False).encode())
    return {**members, "json": json.dumps({**record, "uid": record.get("uid", uid)}, ensure_ascii=False).encode()}
