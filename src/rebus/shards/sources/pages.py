"""Interleaved pages as rows of a table, in OBELICS' or MMC4's form (shards.pages), pictures by path or as base64."""

import json
from pathlib import Path
from typing import Any

from rebus.shards.assemble import uid_of
from rebus.shards.damage import BAD_JSON, MISSING_IMAGE, DamagedSampleError
from rebus.shards.pages import embedded_images, in_document_order, is_page, without_pictures
from rebus.shards.sources.files import read_images
from rebus.shards.sources.tables import find_pieces, read_piece

__all__ = ["build", "describe", "find_pieces", "read_piece", "survey"]


def build(record: dict[str, Any], root: Path) -> dict[str, bytes]:
    """Members of one page: the pictures in the order of their list, and the rest as its json.

    Raises: DamagedSampleError.
    """
    metadata = describe(record)
    members = read_images(root, _pictures(record))
    uid = uid_of(record, {**members, "json": _as_json(metadata)})
    return {**members, "json": _as_json({**metadata, "uid": uid})}


def describe(record: dict[str, Any]) -> dict[str, Any]:
    """What the json of this record says once it is converted; no picture is opened."""
    if not is_page(record):
        raise DamagedSampleError(BAD_JSON, "a page has the list `texts` or `text_list`")
    return without_pictures(record)


def survey(record: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    """What `describe` gives, and names or bytes of the pictures in the page's order."""
    return describe(record), in_document_order(record, _pictures(record))


def _pictures(record: dict[str, Any]) -> list[Any]:
    """Bytes or file names, in the order of their list."""
    if carried := embedded_images(record):
        return carried
    entries = record.get("image_info") if record.get("image_info") is not None else record.get("images") or []
    if not isinstance(entries, list):
        raise DamagedSampleError(BAD_JSON, f"the pictures of a page are a {type(entries).__name__}, not a list")
    names = [entry.get("image_name") if isinstance(entry, dict) else entry for entry in entries if entry]
    if None in names:
        raise DamagedSampleError(MISSING_IMAGE, f"picture {names.index(None)} of `image_info` has no image_name")
    return names


def _as_json(metadata: dict[str, Any]) -> bytes:
    return json.dumps(metadata, ensure_ascii=False).encode()
