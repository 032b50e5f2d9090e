"""One pass over a tar: where each usable sample lies, and why each other one is none."""

import io
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from rebus.config import Place
from rebus.fingerprint import write_atomically
from rebus.records import Damage, Text
from rebus.shards.assemble import Assembled, assemble, is_image_name
from rebus.shards.damage import DamagedSampleError
from rebus.shards.link import read_link
from rebus.shards.members import DAMAGED_TAR, TRUNCATED_TAR, Member, walk_members
from rebus.storage import file_size, open_file

VERSION = 5
"""Part of what makes a shards folder: count it up when the same tar gets another index. 5: sizes
are those of upright pictures (EXIF), which is what rules that count tokens by size need."""

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
        ("text_offset", pa.int64()),
        ("text_length", pa.int64()),
        ("notes", pa.string()),
    ],
    metadata={"rebus_index": str(VERSION)},
)
"""width, height: of the first image, upright, 0 where there is none. image_sizes: the same of every image in turn.
text_offset, text_length: the bytes of the caption, or those that hold all members but the pictures. notes: what is odd
about a usable sample. The metadata tells the version to whoever reads it."""


@dataclass
class Group:
    """Adjacent members with one key, while the pass goes over them."""

    key: str
    offset: int
    end: int = 0
    text_offset: int = -1
    text_end: int = 0
    fault: str = ""
    detail: str = ""
    members: dict[str, bytes] = field(default_factory=dict)


def index_path(shard: Path) -> Path:
    return shard.with_suffix(".index.parquet")


def quarantine_path(shard: Path) -> Path:
    return shard.with_suffix(".quarantine.jsonl")


def write_index(shard: Path, earlier: list[Damage] | None = None) -> None:
    """Indexes a tar, or the tar that a link names, and writes both files beside the shard.

    earlier: damage that a source found before the tar was written.
    """
    table, damages = index_tar(shard)
    write_tables(shard, table, [*(earlier or []), *damages])


def write_tables(shard: Path, table: pa.Table, damages: list[Damage]) -> None:
    """Writes index (SCHEMA) and quarantine; the quarantine, last, tells that the shard is done."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    write_atomically(index_path(shard), buffer.getvalue())
    lines = [json.dumps(asdict(damage)) + "\n" for damage in damages]  # ASCII: any key fits
    write_atomically(quarantine_path(shard), "".join(lines))


def is_indexed(shard: Path) -> bool:
    return shard.is_file() and index_path(shard).is_file() and quarantine_path(shard).is_file()


def index_tar(shard: Path) -> tuple[pa.Table, list[Damage]]:
    """Returns the rows of the usable samples (SCHEMA, tar order) and the damage, each with its reason."""
    rows, damages = [], []
    for group, outcome in judge_groups(shard):
        if isinstance(outcome, Damage):
            damages.append(outcome)
        else:
            text = (group.text_offset, group.text_end - group.text_offset)
            rows.append(index_row(outcome, group.offset, group.end - group.offset, text))
    return pa.Table.from_pylist(rows, schema=SCHEMA), damages


def judge_groups(shard: Place) -> Iterator[tuple[Group, Damage | Assembled]]:
    """Yields every group of members with what it is: a sample, or the damage that excludes it."""
    seen: set[str] = set()
    name = Path(shard).name
    for group in read_groups(shard):
        if not group.fault and group.key in seen:
            group.fault, group.detail = DUPLICATE_KEY, "the first sample of this key in the shard is used"
        seen.add(group.key)
        if group.fault:
            yield group, Damage(name, group.key, group.offset, group.fault, group.detail)
            continue
        try:
            yield group, assemble(group.key, name, group.members)
        except DamagedSampleError as error:
            yield group, Damage(name, group.key, group.offset, error.reason, error.detail)


def read_groups(shard: Place) -> Iterator[Group]:
    """Yields the samples of a tar as groups of members; faults of the archive are groups of their own."""
    data = read_link(shard).data
    num_bytes = file_size(data)
    group: Group | None = None
    with open_file(data) as file:
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
            if member.extension == "txt":
                group.text_offset, group.text_end = member.offset, member.end
            elif "txt" not in group.members and not is_image_name(member.extension):
                group.text_offset = member.offset if group.text_offset < 0 else group.text_offset
                group.text_end = member.end
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
    own = Group(member.key, member.offset, member.end, fault=member.fault, detail=_detail(member, num_bytes))
    return own, [group] if group is not None else []


def _detail(member: Member, num_bytes: int) -> str:
    if member.fault == TRUNCATED_TAR and not member.name:
        return f"{num_bytes} bytes and no end mark: samples may be missing"
    return member.name or f"at byte {member.offset}"


def index_row(found: Assembled, offset: int, length: int, text: tuple[int, int]) -> dict[str, object]:
    """One row of SCHEMA. text: offset and length of the bytes that hold all but the pictures."""
    sample = found.sample
    sizes = [side for image in sample.images for side in (image.width, image.height)]
    return {
        "key": sample.key,
        "uid": sample.uid,
        "kind": found.kind,
        "offset": offset,
        "length": length,
        "width": sizes[0] if sizes else 0,
        "height": sizes[1] if sizes else 0,
        "num_images": len(sample.images),
        "text_chars": sum(len(part.text) for part in sample.parts if isinstance(part, Text)),
        "image_sizes": sizes,
        "text_offset": text[0],
        "text_length": text[1],
        "notes": ", ".join(found.notes),
    }
