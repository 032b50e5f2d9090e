"""Where a sample lies: a uid, the beginning of one, or a key -> shards and rows."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rebus.engine import list_shards
from rebus.errors import DataError, RebusError
from rebus.log import track
from rebus.records import Damage, Text
from rebus.shards.read import read_index, read_quarantine, read_sample
from rebus.trace.found import Artifact, Ways

UID = re.compile(r"[0-9a-f]{32}")
BEGINNING = re.compile(r"[0-9a-f]{4,31}")
NUM_SHOWN = 8  # of the samples that a name could mean


@dataclass(frozen=True)
class Place:
    """A row of a shard's index."""

    artifact: Artifact
    shard: Path
    row: int
    key: str
    uid: str


@dataclass(frozen=True)
class Named:
    """What a name means. uid: empty where only a quarantine knows the key. unread: shards folders that could not be
    looked into, and why."""

    uid: str
    places: tuple[Place, ...] = ()
    damages: tuple[tuple[Path, Damage], ...] = ()
    unread: tuple[str, ...] = ()


@dataclass
class _Hits:
    """What was met while looking: rows of that key, rows whose uid begins so, damaged samples of that key."""

    keyed: list[Place] = field(default_factory=list)
    begun: list[Place] = field(default_factory=list)
    damages: list[tuple[Path, Damage]] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)


def find_named(ways: Ways, name: str) -> Named:
    """name: a uid, the beginning of one (4 digits at least), or a key. Raises: DataError where it means none, or more
    than one."""
    wanted, hits = name.lower(), _Hits()
    folders = ways.of_kind("shards")
    for artifact in track(folders, "looking"):
        try:
            for shard in list_shards(artifact.folder):
                _look(artifact, shard, name, wanted, hits)
        except RebusError as error:
            hits.unread.append(f"{artifact.folder}: {error}")
    if UID.fullmatch(wanted) and not hits.begun:
        hits.damages += [failed for artifact in folders for failed in _not_downloaded(artifact, wanted)]
    about = tuple(hits.damages), tuple(hits.unread)
    if UID.fullmatch(wanted):
        return Named(wanted, tuple(hits.begun), *about)
    places = hits.keyed or ([] if hits.damages else hits.begun)
    uids = {place.uid for place in places}
    if len(uids) > 1:
        raise _ambiguous(name, places)
    if not uids and not hits.damages:
        where = "\n".join([f"the {len(folders):,} shards folders that were found", *hits.unread])
        raise DataError(f"'{name}' is neither a key nor the beginning of a uid in {where}")
    uid = next(iter(uids), "")
    if hits.keyed:  # the same sample may lie elsewhere under another key
        places = list(find_named(ways, uid).places)
    return Named(uid, tuple(places), *about)


def _look(artifact: Artifact, shard: Path, name: str, wanted: str, hits: _Hits) -> None:
    table = read_index(shard, ["key", "uid"])
    keys, uids = table["key"], table["uid"]

    def places(mask: pa.ChunkedArray) -> list[Place]:
        rows = np.flatnonzero(mask.to_numpy()).tolist()
        return [Place(artifact, shard, row, keys[row].as_py(), uids[row].as_py()) for row in rows]

    hits.keyed += places(pc.equal(keys, name))
    if UID.fullmatch(wanted) or BEGINNING.fullmatch(wanted):
        hits.begun += places(pc.starts_with(uids, wanted))
    hits.damages += [(shard, damage) for damage in read_quarantine(shard) if damage.key == name]


def _not_downloaded(artifact: Artifact, uid: str) -> list[tuple[Path, Damage]]:
    """What became of a row that no picture came of: a download's tables keep its uid, the index has none."""
    found = []
    for rows in sorted(artifact.folder.glob("*.parquet")) if artifact.manifest.made_by.get("source") == "urls" else []:
        shard = rows.with_suffix(".tar")
        if shard.is_file() and "uid" in pq.read_schema(rows).names:
            keys = pq.read_table(rows, columns=["key"], filters=pc.field("uid") == uid)["key"].to_pylist()
            found += [(shard, damage) for damage in read_quarantine(shard) if damage.key in keys]
    return found


def _ambiguous(name: str, places: list[Place]) -> DataError:
    first = {place.uid: place for place in reversed(places)}
    rows = [f"  {uid}  {place.shard}, key {place.key}" for uid, place in sorted(first.items())[:NUM_SHOWN]]
    more = [f"  and {len(first) - NUM_SHOWN:,} more"] if len(first) > NUM_SHOWN else []
    return DataError("\n".join([f"'{name}' could mean {len(first):,} samples. Give the uid of one:", *rows, *more]))


def describe_place(place: Place) -> dict[str, Any]:
    """What lies there, in plain values; a sample that cannot be read any more says why."""
    row = read_index(place.shard).slice(place.row, 1).to_pylist()[0]
    made_by, recipe = place.artifact.manifest.made_by, place.artifact.recipe
    found = {
        "shards": str(place.artifact.folder),
        "shard": place.shard.name,
        "row": place.row,
        "key": place.key,
        "kind": row["kind"],
        "width": row["width"],
        "height": row["height"],
        "num_images": row["num_images"],
        "made_from": f"{made_by.get('source', 'unknown')}: {recipe.get('input', 'unknown')}",
    }
    return {**found, **read_text(place.shard, row)}


def read_text(shard: Path, row: dict[str, Any]) -> dict[str, str]:
    """text, with who speaks where somebody does; or unreadable."""
    try:
        parts = read_sample(shard, row).parts
    except DataError as error:
        return {"unreadable": str(error)}
    texts = [f"{part.role}: {part.text}" if part.role else part.text for part in parts if isinstance(part, Text)]
    return {"text": "\n".join(texts)}
