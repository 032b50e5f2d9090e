"""Image files that a table names, read from under one root and from nowhere else."""

from pathlib import Path
from typing import Any

from rebus.shards.damage import BAD_JSON, MISSING_IMAGE, DamagedSampleError
from rebus.shards.members import CLIMBING_PATH, climbs_out
from rebus.shards.probe import FORMATS, open_header


def read_image(root: Path, name: Any) -> tuple[str, bytes]:
    """Returns the extension (by what the bytes are, whatever the name says) and the bytes of an image.

    Raises: DamagedSampleError for a path that leaves the root (links followed), a missing or unreadable file.
    """
    if not isinstance(name, str) or not name:
        raise DamagedSampleError(BAD_JSON, f"an image's name is {name!r}")
    path = root / name
    if climbs_out(name) or not path.resolve().is_relative_to(root.resolve()):
        raise DamagedSampleError(CLIMBING_PATH, f"{name} leaves {root}")
    if not path.is_file():
        raise DamagedSampleError(MISSING_IMAGE, f"no file {path}")
    data = path.read_bytes()
    return FORMATS[str(open_header(data).format)], data


def read_images(root: Path, names: list[Any]) -> dict[str, bytes]:
    """One image as `webp`, several as `0.webp`, `1.webp` ..."""
    images = [read_image(root, name) for name in names]
    if len(images) == 1:
        return {images[0][0]: images[0][1]}
    return {f"{index}.{extension}": data for index, (extension, data) in enumerate(images)}
