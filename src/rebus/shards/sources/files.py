"""Files that a table names, read from under one root and from nowhere else."""

import os
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from rebus.shards.damage import BAD_JSON, MISSING_IMAGE, REMOTE_FILE, UNREADABLE_IMAGE, DamagedSampleError
from rebus.shards.frames import frames_of
from rebus.shards.members import CLIMBING_PATH, climbs_out
from rebus.shards.pages import decode_base64
from rebus.shards.probe import FORMATS, probe_named, read_header

HEAD_BYTES = 65_536  # that a picture's size is looked for in; beyond lie large EXIF blocks and most WebP and TIFF
_WHOLE = (b"GIF8", b"II*\0", b"MM\0*")  # frames and their number show only in all of it
NUM_REMEMBERED = 65_536  # files whose sizes are kept: many rows ask about one picture

Sizes = tuple[tuple[int, int], ...]


def find_file(root: Path, name: Any) -> Path:
    """The file of that name: a path relative to root, or absolute or file:// and inside of root.

    The name alone decides what leaves the root: links that lie in it were put there by whoever keeps the data, as
    `coco -> /data/coco`, and are followed.

    Raises: DamagedSampleError for a URL, a path that leaves the root or a missing file.
    """
    path = root / check_name(name)
    target = Path(os.path.normpath(path))
    if not any(target.is_relative_to(top) for top in _tops(root)):
        raise DamagedSampleError(CLIMBING_PATH, f"{name[:200]} leaves {root}: it is {str(target)[:200]}")
    try:
        if not path.is_file():
            raise DamagedSampleError(MISSING_IMAGE, f"no file {root / name[:200]}")
    except (OSError, RuntimeError) as error:  # a name too long, a folder that may not be entered, a circle of links
        raise DamagedSampleError(MISSING_IMAGE, f"{name[:200]}: {str(error)[:200]}") from error
    return path


def check_name(name: Any) -> str:
    """The path that a name stands for; no file is touched. Raises: DamagedSampleError."""
    if not isinstance(name, str) or not name:
        raise DamagedSampleError(BAD_JSON, f"a file's name is {name!r:.200}")
    if name.startswith("file://"):
        name = unquote(name.removeprefix("file://"))
    elif "://" in name[:16]:
        raise DamagedSampleError(REMOTE_FILE, f"{name[:200]}: nothing is downloaded. Fetch it and name the file")
    if climbs_out(name.removeprefix("/")):
        raise DamagedSampleError(CLIMBING_PATH, f"{name[:200]} leaves the folder")
    return name


def read_image(root: Path, name: Any) -> tuple[str, bytes]:
    """Returns the extension (by what the bytes are, whatever the name says) and the bytes of an image.

    name: a path, or a picture itself: a data: URI or its bytes. Raises: DamagedSampleError.
    """
    data = _own_bytes(name)
    if data is None:
        try:
            data = find_file(root, name).read_bytes()
        except OSError as error:
            raise DamagedSampleError(MISSING_IMAGE, f"{name}: {error.strerror}") from error
    return FORMATS[read_header(data).format], data


def _own_bytes(name: Any) -> bytes | None:
    if isinstance(name, bytes):
        return name
    return decode_base64(name) if isinstance(name, str) and name.startswith("data:") else None


def read_images(root: Path, names: list[Any]) -> dict[str, bytes]:
    """One image as `webp`, several as `0.webp`, `1.webp` ..."""
    return as_members([read_image(root, name) for name in names])


def as_members(images: list[tuple[str, bytes]]) -> dict[str, bytes]:
    """(extension, bytes) of pictures in order -> members."""
    if len(images) == 1:
        return {images[0][0]: images[0][1]}
    return {f"{index}.{extension}": data for index, (extension, data) in enumerate(images)}


def probe_sizes(root: Path, name: Any) -> tuple[Sizes, tuple[str, ...]]:
    """(width, height) of a picture, of every frame where it is a TIFF, and what is odd about it.

    Of a file only the beginning is read, unless the size stands further on; what was found is remembered.
    Raises: DamagedSampleError.
    """
    data = _own_bytes(name)
    if data is None:
        check_name(name)  # what is no name could not be remembered either
    found = _probe_file(root, name) if data is None else _probe(data)
    if isinstance(found, DamagedSampleError):
        raise DamagedSampleError(found.reason, found.detail)
    return found


@lru_cache(maxsize=NUM_REMEMBERED)
def _probe_file(root: Path, name: str) -> tuple[Sizes, tuple[str, ...]] | DamagedSampleError:
    try:
        with open(find_file(root, name), "rb") as file:
            head = file.read(HEAD_BYTES)
            if len(head) == HEAD_BYTES and not head.startswith(_WHOLE):
                try:
                    return _probe(head)
                except DamagedSampleError as error:
                    if error.reason != UNREADABLE_IMAGE:
                        raise
            return _probe(head + file.read())
    except DamagedSampleError as error:
        return DamagedSampleError(error.reason, error.detail)  # a raised one would keep the picture's bytes alive
    except OSError as error:
        return DamagedSampleError(MISSING_IMAGE, str(error))


def _probe(data: bytes) -> tuple[Sizes, tuple[str, ...]]:
    found = [probe_named(frame, "") for frame in frames_of(data)]
    notes = dict.fromkeys(note for _, odd in found for note in odd)
    return tuple((image.width, image.height) for image, _ in found), tuple(notes)


@lru_cache(maxsize=16)
def _tops(root: Path) -> tuple[Path, Path]:
    """The root as it is called and as it is: an absolute name may begin with either."""
    return Path(os.path.normpath(root)), root.resolve()
