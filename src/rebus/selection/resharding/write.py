"""One output shard: its rows read from the input, its tar, stats and index written. Any process can, and none needs to
know of the others.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rebus.errors import DataError
from rebus.fingerprint import write_atomically
from rebus.records import Damage
from rebus.selection.resharding.blur import COLUMN, Box, blur_members, read_boxes
from rebus.selection.resharding.config import ReshardRecipe
from rebus.selection.resharding.plan import Piece
from rebus.shards.assemble import parse_json
from rebus.shards.damage import DamagedSampleError
from rebus.shards.index import index_tar, is_indexed, write_tables
from rebus.shards.link import SUFFIX, Link, read_link, write_link
from rebus.shards.read import members_of, read_index, read_quarantine
from rebus.shards.write import write_shard
from rebus.storage import file_size, read_ranges, upload

NUM_READ = 256  # samples in memory at once
NOT_AS_INDEXED = "not as indexed"


@dataclass(frozen=True)
class Source:
    """Where the samples of a piece lie. links: of the input shards by number; the rest is by place in the piece."""

    links: dict[int, Link]
    keys: list[str]
    uids: list[str]
    offsets: np.ndarray
    lengths: np.ndarray


@dataclass(frozen=True)
class Written:
    """num_planned: copies that belong into the shard; num_samples: those that are in it."""

    shard: Path
    num_planned: int
    num_samples: int
    num_bytes: int


def write_piece(piece: Piece, *, recipe: ReshardRecipe, shards: tuple[Path, ...]) -> Written:
    """Writes one output shard, unless it is there. shards: of the input, by the numbers that pieces have.

    The tar is written first, then its stats, then index and quarantine, which tell that it is done; where it is
    uploaded, the copy here is removed and a link stays.
    """
    tar = recipe.out / recipe.output_shard_format.format(piece.number)
    shard = tar if recipe.upload is None else tar.with_suffix(SUFFIX)
    if not is_indexed(shard):
        damages: list[Damage] = []
        write_shard(tar, _samples(piece, recipe, shards, damages))
        table, found = index_tar(tar)
        stats = recipe.out / recipe.output_shard_stats_format.format(piece.number)
        damages += found
        write_atomically(stats, json.dumps(_stats(piece, table.num_rows, tar), indent=1) + "\n")
        if recipe.upload is not None:
            place = recipe.upload.rstrip("/")
            upload(stats, f"{place}/{stats.name}")
            write_link(shard, Link(f"{place}/{tar.name}", version=upload(tar, f"{place}/{tar.name}")))
        write_tables(shard, table, damages)
    if shard != tar:
        tar.unlink(missing_ok=True)
    num_samples = read_index(shard, ["uid"]).num_rows
    return Written(shard, len(piece.row), num_samples, file_size(read_link(shard).data))


def _stats(piece: Piece, successes: int, tar: Path) -> dict[str, int]:
    """`successes` is what other tools read, as of img2dataset's stats."""
    planned = len(piece.row)
    return {"count": planned, "successes": successes, "failed": planned - successes, "bytes": tar.stat().st_size}


def list_damages(written: list[Written]) -> list[Damage]:
    return [damage for one in written for damage in read_quarantine(one.shard)]


def _samples(
    piece: Piece, recipe: ReshardRecipe, shards: tuple[Path, ...], damages: list[Damage]
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yields (key, members) in the piece's order; what cannot be read or blurred goes to `damages`, offset -1: it is in
    no tar."""
    source = _find(piece, shards)
    name = recipe.output_shard_format.format(piece.number)
    boxes: dict[str, list[Box]] = {}
    if recipe.blur_metadata_map is not None:
        boxes = read_boxes(recipe.blur_metadata_map, [shards[number].name for number in source.links], source.uids)
    for start in range(0, len(piece.row), NUM_READ):
        places = np.arange(start, min(start + NUM_READ, len(piece.row)))
        blobs = _read(piece, source, places)
        for place in places.tolist():
            uid, shard = source.uids[place], shards[piece.shard[place]]
            key = f"{uid}-{piece.copy[place]}"
            row = {"key": source.keys[place], "offset": int(source.offsets[place])}
            row["length"] = int(source.lengths[place])
            try:
                members = members_of(shard, source.links[int(piece.shard[place])], row, blobs[place - start])
                yield key, _change(members, uid, boxes.get(uid), recipe)
            except DamagedSampleError as error:
                detail = f"sample '{row['key']}' of {shard}: {error.detail}"
                damages.append(Damage(name, key, -1, error.reason, detail))
            except DataError as error:
                damages.append(Damage(name, key, -1, NOT_AS_INDEXED, str(error)))


def _find(piece: Piece, shards: tuple[Path, ...]) -> Source:
    """Reads each index of the piece once, and of it only the rows that are wanted."""
    number = len(piece.row)
    keys, uids = np.empty(number, object), np.empty(number, object)
    offsets, lengths = np.empty(number, np.int64), np.empty(number, np.int64)
    links = {}
    for shard in np.unique(piece.shard).tolist():
        places = np.flatnonzero(piece.shard == shard)
        table = read_index(shards[shard], ["key", "uid", "offset", "length"]).take(pa.array(piece.row[places]))
        keys[places], uids[places] = table["key"].to_pylist(), table["uid"].to_pylist()
        offsets[places], lengths[places] = table["offset"].to_numpy(), table["length"].to_numpy()
        links[shard] = read_link(shards[shard])
    return Source(links, keys.tolist(), uids.tolist(), offsets, lengths)


def _read(piece: Piece, source: Source, places: np.ndarray) -> list[bytes]:
    """The bytes of some samples, in their order: of each input shard in its own, so that neighbours come together."""
    blobs: list[bytes] = [b""] * len(places)
    for shard in np.unique(piece.shard[places]).tolist():
        own = places[piece.shard[places] == shard]
        own = own[np.argsort(source.offsets[own], kind="stable")]
        data = source.links[shard].data
        found = read_ranges(data, source.offsets[own].tolist(), source.lengths[own].tolist())
        for place, blob in zip((own - places[0]).tolist(), found, strict=True):
            blobs[place] = blob
    return blobs


def _change(members: dict[str, bytes], uid: str, boxes: list[Box] | None, recipe: ReshardRecipe) -> dict[str, bytes]:
    """What is written of a sample: blurred where it has boxes, and with its uid (and boxes) in the json.

    Raises: DamagedSampleError.
    """
    if recipe.apply_blur and boxes:
        members = blur_members(members, boxes, recipe.reencode_webp_quality)
    metadata: dict[str, Any] = parse_json(members["json"]) if "json" in members else {}
    told = metadata.get("uid")
    added: dict[str, Any] = {} if isinstance(told, str) and told.lower() == uid else {"uid": uid}
    if recipe.inject_blur_metadata and boxes is not None:
        added[COLUMN] = [list(box) for box in boxes]
    if not added:
        return members
    return {**members, "json": json.dumps({**metadata, **added}, ensure_ascii=False).encode()}
