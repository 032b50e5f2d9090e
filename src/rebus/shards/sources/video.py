"""Videos become frames once, when a shard is written (rebus.pictures.video), and are stored as JPEG."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rebus.pictures.video import OptionError, listed_seconds, take
from rebus.shards.damage import BAD_JSON, UNREADABLE_VIDEO, DamagedSampleError
from rebus.shards.sources.files import find_file, read_image

if TYPE_CHECKING:
    import PIL.Image

JPEG_QUALITY = 90


@dataclass(frozen=True)
class StoredFrames:
    """pictures: (extension, bytes) of each frame. times: what the json keeps of the video, as turns.py reads it."""

    pictures: list[tuple[str, bytes]]
    times: dict[str, Any]


def read_video(root: Path, element: Mapping[str, Any]) -> StoredFrames:
    """The frames that a chat element {"type": "video", "video": file or list of frames, options} asks for.

    Options as in qwen-vl-utils, see pictures.video.take. Frames that are listed are all taken, `fps` a second.
    Raises: DamagedSampleError; DataError where PyAV is missing.
    """
    video = element.get("video")
    try:
        if isinstance(video, list):
            return _listed(root, video, element)
        taken = take(find_file(root, video), element)
        return _stored([("jpg", _as_jpeg(picture)) for picture in taken.pictures], taken.seconds, taken.fps)
    except OptionError as error:
        raise DamagedSampleError(BAD_JSON, str(error)) from error
    except ValueError as error:
        raise DamagedSampleError(UNREADABLE_VIDEO, str(error)) from error


def _listed(root: Path, names: list[Any], element: Mapping[str, Any]) -> StoredFrames:
    if not names:
        raise DamagedSampleError(UNREADABLE_VIDEO, "a list of no frames")
    return _stored([read_image(root, name) for name in names], *listed_seconds(len(names), element))


def _stored(pictures: list[tuple[str, bytes]], seconds: tuple[float, ...], fps: float) -> StoredFrames:
    return StoredFrames(pictures, {"num_frames": len(pictures), "seconds": list(seconds), "fps": fps})


def _as_jpeg(picture: "PIL.Image.Image") -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
