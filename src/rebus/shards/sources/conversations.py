"""LLaVA's JSON (`image` a path, a list of paths or absent; `conversations`) and `messages` with `images`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rebus.records import content_uid
from rebus.shards.assemble import uid_of
from rebus.shards.sources.files import read_images
from rebus.shards.sources.tables import Row, read_rows


def read_records(table: Path) -> Iterator[Row]:
    return read_rows(table)


def build(record: dict[str, Any], root: Path) -> dict[str, bytes]:
    """Members of one conversation; the record itself is its json. Raises: DamagedSampleError."""
    named = record.get("image", record.get("images"))
    names = named if isinstance(named, list) else [] if named is None else [named]
    members = read_images(root, names)
    turns = json.dumps(record.get("conversations", record.get("messages")), ensure_ascii=False).encode()
    uid = uid_of(record, {}) if "uid" in record else content_uid(*members.values(), turns)
    return {**members, "json": json.dumps({**record, "uid": uid}, ensure_ascii=False).encode()}
