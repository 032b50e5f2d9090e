"""Rows of a JSON table become a shard where they lie: an index of byte ranges and a link, nothing is copied."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from rebus.errors import DataError
from rebus.records import Damage, Image, Text, content_uid
from rebus.shards.assemble import assemble, uid_of
from rebus.shards.damage import DamagedSampleError
from rebus.shards.index import SCHEMA, is_indexed, write_tables
from rebus.shards.link import SUFFIX, Link, write_link
from rebus.shards.pages import in_document_order
from rebus.shards.sources.files import check_name, probe_sizes
from rebus.shards.sources.pieces import Piece
from rebus.shards.sources.tables import parse_row, read_blobs
from rebus.storage import file_version

_UNKNOWN = Image(0, 0, role="user")
_MAX_SIDE = 2**31  # of what the index holds


def link_piece(piece: Piece, *, source: str, root: Path, out: Path, check_images: bool) -> Path:
    """Writes the link of one piece, its index and its quarantine. piece.file and root are absolute.

    source: a module of shards.sources with `survey(record)`: what its json would say once converted, and the names or
    the bytes of its pictures, in the order of its parts. check_images: whether to look for their sizes.
    """
    shard = out / f"{piece.number:05d}{SUFFIX}"
    if not is_indexed(shard):
        write_link(shard, Link(piece.file, "rows", source, str(root), file_version(piece.file)))
        damages: list[Damage] = []
        rows = list(_rows(piece, shard.name, source, root if check_images else None, damages))
        write_tables(shard, _table(rows), damages)
    return shard


def _rows(
    piece: Piece, shard: str, source: str, root: Path | None, damages: list[Damage]
) -> Iterator[tuple[object, ...]]:
    """Yields rows of the index (SCHEMA); appends what cannot be used to `damages`, at its offset in the table."""
    if piece.offsets is None or piece.lengths is None:
        raise DataError(f"source `{source}` has no rows to link: convert it with `link: false`.")
    module, path = importlib.import_module(f"rebus.shards.sources.{source}"), Path(piece.file)
    places = zip(piece.offsets.tolist(), piece.lengths.tolist(), strict=True)
    for number, ((key, blob), place) in enumerate(zip(read_blobs(piece), places, strict=True), piece.first_row + 1):
        try:
            yield _judge(module, key, shard, path, blob, place, root)
        except DamagedSampleError as error:
            detail = f"record {number}: {error.detail}".rstrip(": ")
            damages.append(Damage(shard, key, place[0], error.reason, detail))


def _judge(
    module: Any, key: str, shard: str, path: Path, blob: bytes, place: tuple[int, int], root: Path | None
) -> tuple[object, ...]:
    """The row of the index; the uid is the one that the record brings, else a hash of its bytes.

    Raises: DamagedSampleError.
    """
    record = parse_row(path, blob)
    if isinstance(record, DamagedSampleError):
        raise record
    metadata, names = module.survey(record)
    images, notes = trust_sizes(record, names) if root is None else _look(root, names)
    uid = uid_of(record, {"json": blob}) if "uid" in record else content_uid(blob)
    found = assemble(key, shard, {}, metadata=metadata, images=images, uid=uid)
    sizes = [side for image in images for side in (image.width, image.height)]
    first = sizes[:2] or (0, 0)
    num_chars = sum([len(part.text) for part in found.sample.parts if isinstance(part, Text)])
    about = ", ".join((*found.notes, *notes)) if found.notes or notes else ""
    return key, uid, found.kind, *place, *first, len(images), num_chars, sizes, *place, about


def _table(rows: list[tuple[object, ...]]) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else [[]] * len(SCHEMA)
    return pa.table([pa.array(column, one.type) for column, one in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)


def _look(root: Path, names: list[Any]) -> tuple[list[Image], tuple[str, ...]]:
    found = [probe_sizes(root, name) for name in names]
    notes = dict.fromkeys(note for _, odd in found for note in odd)
    return [Image(*size, role="user") for sizes, _ in found for size in sizes], tuple(notes)


def trust_sizes(record: dict[str, Any], names: list[Any]) -> tuple[list[Image], tuple[str, ...]]:
    """Sizes that the record tells (`width` and `height`, or lists of them), else 0. No file is touched.

    Raises: DamagedSampleError for a name that could not be opened.
    """
    for name in names:
        if not (isinstance(name, bytes) or (isinstance(name, str) and name.startswith("data:"))):
            check_name(name)
    told = [record.get("width"), record.get("height")]
    if None in told:
        return [_UNKNOWN] * len(names), ()
    sides = [side if isinstance(side, list) else [side] for side in told]
    are_sizes = all(type(one) is int and 0 < one < _MAX_SIDE for side in sides for one in side)
    if not are_sizes or any(len(side) != len(names) for side in sides):
        return [_UNKNOWN] * len(names), ()
    images = [Image(width, height, role="user") for width, height in zip(*sides, strict=True)]
    return in_document_order(record, images), ()
