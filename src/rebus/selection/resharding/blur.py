"""Boxes of a picture made unrecognisable: faces, mostly. After Yang et al., A Study of Face Obfuscation in ImageNet
(2022): boxes are widened by a tenth of their diagonal, blurred with a Gaussian of that width, and feathered by it.
"""

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rebus.errors import DataError
from rebus.fingerprint import file_fingerprint, fingerprint
from rebus.pictures.decode import decode_image
from rebus.shards.assemble import image_names
from rebus.shards.damage import UNDECODABLE_IMAGE, DamagedSampleError

if TYPE_CHECKING:
    import PIL.Image

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, as shares of width and height."""

COLUMN = "face_bboxes"
"""Of DataComp's parquet files, and the name in the json of what is written."""

SHARE = 0.1
FAR = 1.5
"""Boxes reach a little beyond the picture where a detector guesses; pixels in place of shares reach far beyond."""


def read_boxes(path: Path, shards: Iterable[str], uids: list[str]) -> dict[str, list[Box]]:
    """uid -> boxes, of those among `uids` that are known.

    path: a parquet with columns `uid` and `face_bboxes`; a json {uid: [[left, top, right, bottom], ...]}; or a json
    that names such a parquet for each shard (its file name), of which only those of `shards` are read.
    Raises: DataError.
    """
    if path.suffix == ".parquet":
        return _checked(path, _of_table(path, uids))
    tree = _read_json(path)
    if _names_tables(tree):
        tables = {tree[name] for name in shards if name in tree}
        found = [_of_table(path.parent / table, uids) for table in sorted(tables)]
        return _checked(path, {uid: boxes for one in found for uid, boxes in one.items()})
    return _checked(path, {uid: tree[uid] for uid in uids if uid in tree})


def boxes_fingerprint(path: Path) -> str:
    """Of a file of boxes and of those that it names."""
    tree = _read_json(path) if path.suffix != ".parquet" else {}
    named = sorted(set(tree.values())) if _names_tables(tree) else []
    return fingerprint([file_fingerprint(path), *(file_fingerprint(path.parent / name) for name in named)])


def _names_tables(tree: dict[str, Any]) -> bool:
    return all(isinstance(value, str) for value in tree.values())


def _read_json(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is no json of boxes ({error}).") from error
    if not isinstance(tree, dict):
        raise DataError(f"{path} must hold an object: uid -> boxes, or shard -> parquet.")
    return tree


def _of_table(path: Path, uids: list[str]) -> dict[str, Any]:
    try:
        table = pq.read_table(path, columns=["uid", COLUMN], filters=pc.field("uid").isin(pa.array(uids, pa.string())))
    except (OSError, pa.ArrowInvalid, KeyError) as error:
        raise DataError(f"{path} is no parquet with columns uid and {COLUMN} ({error}).") from error
    return dict(zip(table["uid"].to_pylist(), table[COLUMN].to_pylist(), strict=True))


def _checked(path: Path, found: dict[str, Any]) -> dict[str, list[Box]]:
    """Boxes cut off at the picture's edges. Raises: DataError for what is no box."""
    return {uid: [_check_box(path, uid, box) for box in boxes or ()] for uid, boxes in found.items()}


def _check_box(path: Path, uid: str, box: Any) -> Box:
    try:
        left, top, right, bottom = (float(side) for side in box)
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}, uid {uid}: {box!r} is no box of four numbers.") from error
    if not (-FAR < left <= right < FAR and -FAR < top <= bottom < FAR):  # refuses NaN too
        raise DataError(
            f"{path}, uid {uid}: {box!r} is no box. Wanted are left, top, right, bottom, in this order, as shares "
            "(0 to 1) of width and height."
        )
    return max(0.0, left), max(0.0, top), min(1.0, right), min(1.0, bottom)


def blur_picture(picture: "PIL.Image.Image", boxes: list[Box]) -> "PIL.Image.Image":
    """The same RGB picture with the boxes blurred, each in proportion to its size."""
    import PIL.Image
    import PIL.ImageDraw
    import PIL.ImageFilter

    picture = picture.copy()
    width, height = picture.size
    for left, top, right, bottom in boxes:
        box = left * width, top * height, right * width, bottom * height
        radius = SHARE * ((box[2] - box[0]) ** 2 + (box[3] - box[1]) ** 2) ** 0.5
        widened = box[0] - radius, box[1] - radius, box[2] + radius, box[3] + radius
        reach = round(3 * radius) + 1  # of the feathering, and of what the blur looks at
        around = (
            max(0, int(widened[0]) - reach),
            max(0, int(widened[1]) - reach),
            min(width, int(widened[2]) + reach + 1),
            min(height, int(widened[3]) + reach + 1),
        )
        part = picture.crop(around)
        mask = PIL.Image.new("L", part.size, 0)
        inner = [widened[0] - around[0], widened[1] - around[1], widened[2] - around[0], widened[3] - around[1]]
        PIL.ImageDraw.Draw(mask).rectangle(inner, fill=255)
        gaussian = PIL.ImageFilter.GaussianBlur(radius)
        picture.paste(part.filter(gaussian), around[:2], mask.filter(gaussian))
    return picture


def blur_members(members: dict[str, bytes], boxes: list[Box], quality: int) -> dict[str, bytes]:
    """The members of a sample with its one picture blurred and written as WebP. Raises: DamagedSampleError."""
    names = image_names(members)
    if len(names) != 1:
        raise DamagedSampleError("boxes without a place", f"{len(boxes)} boxes, {len(names)} pictures")
    try:
        picture = blur_picture(decode_image(members[names[0]]), boxes)
        buffer = io.BytesIO()
        picture.save(buffer, "WEBP", quality=quality)
    except (ValueError, OSError) as error:
        raise DamagedSampleError(UNDECODABLE_IMAGE, str(error)) from error
    kept = {name: content for name, content in members.items() if name != names[0]}
    return {f"{names[0].rpartition('.')[0]}.webp".lstrip("."): buffer.getvalue(), **kept}
