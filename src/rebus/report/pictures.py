"""Pictures and captions out of shards, small enough for a page."""

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rebus.engine import list_shards
from rebus.errors import DataError
from rebus.pictures.decode import decode_image
from rebus.records import Sample, Text
from rebus.report.gather import Artifact
from rebus.shards.read import read_index, read_sample

SIDE = 96  # pixels; about 2 kB each as WebP, so two hundred of them stay under half a megabyte


@dataclass(frozen=True)
class Example:
    """A sample as a page shows it. picture: a data URI, empty where there is none or it does not decode."""

    uid: str
    key: str
    text: str
    picture: str


def load_examples(
    uids: Iterable[str], sources: Sequence[Artifact], *, stems: set[str] | None = None, side: int = SIDE
) -> dict[str, Example]:
    """The wanted samples that the shards still hold, by uid. One seek a sample.

    stems: of the shards that hold them, where that is known: no other index is read. side: pixels, as shown.
    """
    wanted = set(uids)
    examples: dict[str, Example] = {}
    for tar in (tar for source in sources for tar in list_shards(source.folder)):
        if stems is not None and tar.stem not in stems:
            continue
        for row in _rows_of(tar, wanted - set(examples)):
            try:
                examples[row["uid"]] = _example(read_sample(tar, row), side)
            except DataError:
                continue  # the tar changed since; the page says that the picture is gone
    return examples


@dataclass(frozen=True)
class Picture:
    """An encoded picture as it lies in its shard, and the extension that fits its format."""

    data: bytes
    extension: str


def find_picture(uid: str, sources: Sequence[Artifact]) -> Picture | None:
    """The first picture of a sample; None where the shards no longer hold it."""
    for tar in (tar for source in sources for tar in list_shards(source.folder)):
        for row in _rows_of(tar, {uid}):
            images = read_sample(tar, row).images
            if images and images[0].data:
                return Picture(images[0].data, _extension(images[0].data))
    return None


def _extension(data: bytes) -> str:
    """From the first bytes: WebP, PNG, or else JPEG, the three that shards hold."""
    if data[8:12] == b"WEBP":
        return "webp"
    return "png" if data.startswith(b"\x89PNG") else "jpg"


def _rows_of(tar: Path, uids: set[str]) -> list[dict[str, Any]]:
    if not uids:
        return []
    index = read_index(tar)
    return index.filter(pc.is_in(index["uid"], value_set=pa.array(sorted(uids), pa.string()))).to_pylist()


def _example(sample: Sample, side: int) -> Example:
    text = " ".join(part.text for part in sample.parts if isinstance(part, Text))
    data = sample.images[0].data if sample.images else None
    return Example(sample.uid, sample.key, text, picture_uri(data, side) if data else "")


def picture_uri(data: bytes, side: int = SIDE) -> str:
    """A thumbnail of side x side pixels at most as a data URI; empty where the bytes are no picture."""
    try:
        picture = decode_image(data)
    except ValueError:
        return ""
    picture.thumbnail((side * 2, side * 2))  # twice the shown side, for dense screens
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=70)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def eval_picture(name: str, folders: Sequence[Path], side: int = SIDE) -> str:
    """The picture of an evaluation set that the rule `unseen` calls `folder/file` or `folder/shard/key#number`, as a
    data URI; empty where it is not there any more, or where the name is that of a vector."""
    for folder in (folder for folder in folders if name.startswith(f"{folder.name}/")):
        inside = name.removeprefix(f"{folder.name}/")
        path = folder / inside
        if path.is_file():
            return picture_uri(path.read_bytes(), side)
        shard, _, rest = inside.partition("/")
        key, _, number = rest.rpartition("#")
        data = _picture_of(folder / shard, key, int(number)) if number.isdigit() else b""
        if data:
            return picture_uri(data, side)
    return ""


def _picture_of(shard: Path, key: str, number: int) -> bytes:
    if not shard.is_file():
        return b""
    try:
        index = read_index(shard)
        rows = index.filter(pc.equal(index["key"], key)).to_pylist()
        return (read_sample(shard, rows[0]).images[number].data or b"") if rows else b""
    except (DataError, IndexError):
        return b""
