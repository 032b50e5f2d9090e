"""One pass over a tar: where each usable sample lies, and why each other one is none."""

import io
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rebus.fingerprint import write_atomically
from rebus.records import Damage, Sample, Text
from rebus.shards.assemble import DamagedSampleError, assemble
from rebus.shards.members import DAMAGED_TAR, TRUNCATED_TAR, Member, walk_members

VERSION = 1
"""Part of what makes a shards folder: count it up when the same tar gets another index."""

DUPLICATE_KEY = "duplicate key"
UNREADABLE_TAR = "unreadable tar"

SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("uid", pa.string()),
        ("kind", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("num_images", pa.int32()),
        ("text_chars", pa.int32()),
        ("image_sizes", pa.list_(pa.int32())),
    ]
)
"""width, height: of the first image, 0 where there is none. image_sizes: width, height of every image in turn."""


@dataclass
class Group:
    """Adjacent members with one key, while the pass goes over them."""

    key: str
    offset: int
    end: int = 0
    fault: str = ""
    detail: str = ""
    members: dict[str, bytes] = field(default_factory=dict)


def index_path(tar: Path) -> Path:
    return tar.with_suffix(".index.parquet")


def quarantine_path(tar: Path) -> Path:
    return tar.with_suffix(".quarantine.jsonl")


def write_index(tar: Path, earlier: list[Damage] | None = None) -> None:
    """Indexes a tar and writes both files beside it; the quarantine, last, tells that the shard is done.

    earlier: damage that a source found before the tar was written.
    """
    table, damages = index_tar(tar)
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    write_atomically(index_path(tar), buffer.getvalue())
    lines = [json.dumps(asdict(damage)) + "\n" for damage in [*(earlier or []), *damages]]  # ASCII: any key fits
    write_atomically(quarantine_path(tar), "".join(lines))


def is_indexed(tar: Path) -> bool:
    return tar.is_file() and index_path(tar).is_file() and quarantine_path(tar).is_file()


def index_tar(tar: Path) -> tuple[pa.Table, list[Damage]]:
    """Returns the rows of the usable samples (SCHEMA, tar order) and the damage, each with its reason."""
    rows, damages = [], []
    for group, outcome in judge_groups(tar):
        if isinstance(outcome, Damage):
            damages.append(outcome)
        else:
            kind, sample = outcome
            rows.append(_row(group, kind, sample))
    return pa.Table.from_pylist(rows, schema=SCHEMA), damages


def judge_groups(tar: Path) -> Iterator[tuple[Group, Damage | tuple[str, Sample]]]:
    """Yields every group of members with what it is: (kind, sample), or the damage that excludes it."""
    seen: set[str] = set()
    for group in read_groups(tar):
        if not group.fault and group.key in seen:
            group.fault, group.detail = DUPLICATE_KEY, "the first sample of this key in the shard is used"
        seen.add(group.key)
        if group.fault:
            yield group, Damage(tar.name, group.key, group.offset, group.fault, group.detail)
            continue
        try:
            yield group, assemble(group.key, tar.name, group.members)
        except DamagedSampleError as error:
            yield group, Damage(tar.name, group.key, group.offset, error.reason, error.detail)


def read_groups(tar: Path) -> Iterator[Group]:
    """Yields the samples of a tar as groups of members; faults of the archive are groups of their own."""
    num_bytes = os.path.getsize(tar)
    group: Group | None = None
    with open(tar, "rb") as file:
        for member in walk_members(file, num_bytes):
            if member.fault:
                group, finished = _fault(member, group, num_bytes)
                yield from finished
                continue
            if group is not None and (member.key != group.key or member.extension in group.members):
                yield group
                group = None
            group = group or Group(member.key, member.offset)
            file.seek(member.data_offset)
            group.members[member.extension] = file.read(member.size)
            group.end = member.end
    if group is not None:
        yield group


def _fault(member: Member, group: Group | None, num_bytes: int) -> tuple[Group, list[Group]]:
    """What a faulty member does to the group before it: (the group that is open now, the groups that are over).

    A damaged header without a trustworthy name hides whose member it was: the open group is given up, since it may
    lack that member.
    """
    if member.fault == DAMAGED_TAR and not member.offset:
        return Group("", -1, fault=UNREADABLE_TAR, detail="it does not begin with a tar header"), []
    hidden = member.fault == DAMAGED_TAR and not member.name
    if group is not None and (member.key == group.key or hidden):
        group.fault, group.detail = member.fault, _detail(member, num_bytes)
        return group, []
    own = Group(member.key, member.offset, member.end, member.fault, _detail(member, num_bytes))
    return own, [group] if group is not None else []


def _detail(member: Member, num_bytes: int) -> str:
    if member.fault == TRUNCATED_TAR and not member.name:
        return f"{num_bytes} bytes and no end mark: samples may be missing"
    return member.name or f"at byte {member.offset}"


def _row(group: Group, kind: str, sample: Sample) -> dict[str, object]:
    sizes = [side for image in sample.images for side in (image.width, image.height)]
    return {
        "key": group.key,
        "uid": sample.uid,
        "kind": kind,
        "offset": group.offset,
        "length": group.end - group.offset,
        "width": sizes[0] if sizes else 0,
        "height": sizes[1] if sizes else 0,
        "num_images": len(sample.images),
        "text_chars": sum(len(part.text) for part in sample.parts if isinstance(part, Text)),
        "image_sizes": sizes,
    }
