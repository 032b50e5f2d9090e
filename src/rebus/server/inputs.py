"""What people hand in (paths, URLs, bytes, PIL pictures, arrays, chat messages) as the parts that training sees.

Whatever it was, it becomes encoded bytes, without loss, so that one preprocessing serves all.
"""

import base64
import binascii
import io
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import PIL.Image
import PIL.ImageOps

from rebus.errors import DataError
from rebus.pictures import native, video
from rebus.pictures.config import ImageConfig, NativeConfig
from rebus.pictures.decode import decode_image
from rebus.records import Image, Part, Role, Text, Video
from rebus.storage import open_file

MAX_IMAGE_BYTES = 256 * 2**20
MAX_VIDEO_BYTES = 2 * 2**30
"""Larger files are refused before they are read: who hands in a URL does not always know what is behind it."""

ROLES = ("system", "user", "assistant")
PNG_MODES = ("1", "L", "LA", "P", "RGBA", "I;16")

Source = str | Path | bytes | PIL.Image.Image | np.ndarray
Message = Mapping[str, Any]


def image_of(source: Source | Image, options: Mapping[str, Any] | None = None, role: Role = "user") -> Image:
    """A picture from a path, file://, http(s):// or data: URL, bytes, a PIL picture or an array (uint8, [H, W] grey,
    [H, W, 3] RGB or [H, W, 4] RGBA).

    options: the limits of the resize, such as min_pixels. Raises: DataError that names the picture.
    """
    if isinstance(source, Image):
        return Image(source.width, source.height, source.data, role, source.limits)
    data = _encoded(source)
    try:
        width, height = decode_image(data).size
        return Image(width, height, data, role, native.limits_of(options or {}))
    except ValueError as error:
        known = "PNG, JPEG, WebP, GIF, BMP and TIFF files can be shown."
        raise DataError(f"{_name(source)}: {error}. {known}") from error


def video_of(
    source: Source | Sequence[Source], options: Mapping[str, Any] | None, rule: ImageConfig, role: Role = "user"
) -> Video:
    """A video from a path, URL or bytes, or from its frames in order. Frames are chosen, and pictures resized, by
    options named as in qwen-vl-utils (see pictures.video). Raises: DataError that names the video."""
    options = dict(options or {})
    options["nframes"] = options.pop("num_frames", options.get("nframes"))
    native_rule = rule if isinstance(rule, NativeConfig) else None  # then frames are kept at the size they will have
    try:
        if isinstance(source, list | tuple):
            return video.video_of([image_of(frame, options, role) for frame in source], options, role)
        if isinstance(source, PIL.Image.Image | np.ndarray):
            raise DataError(f"{_name(source)} is one picture; a video is a file or a list of frames.")
        place = cast("str | Path | bytes", source)
        return video.read_video(_path_or_bytes(place, MAX_VIDEO_BYTES), options, native_rule, role)
    except ValueError as error:
        name = "a list of frames" if isinstance(source, list | tuple) else _name(cast(Source, source))
        reason = str(error).removeprefix(f"{name}: ")
        raise DataError(f"{name} cannot be used as a video: {reason}.") from error


def parts_of(messages: Sequence[Message], rule: ImageConfig) -> list[Part]:
    """Chat messages in the form of OpenAI and the hub: {"role", "content": text or a list of {"type": "text" |
    "image" | "video" | "image_url" | "video_url", ...}}. Raises: DataError that says which message is wrong."""
    if not messages:
        raise DataError("there is no message to answer.")
    parts = [part for number, one in enumerate(messages) for part in _message_parts(one, number, rule)]
    if messages[-1]["role"] != "user":
        raise DataError(f"the last message is the {messages[-1]['role']}'s; an answer follows a user's.")
    return parts


def _message_parts(message: Message, number: int, rule: ImageConfig) -> list[Part]:
    where = f"message {number}"
    if not isinstance(message, Mapping) or message.get("role") not in ROLES:
        raise DataError(f"{where} has no `role` of {', '.join(ROLES)}.")
    role, content = cast(Role, message["role"]), message.get("content")
    if isinstance(content, str):
        return [Text(content, role)]
    if not isinstance(content, list) or not content:
        raise DataError(f"{where} has no `content`: a text, or a list of texts and pictures.")
    return [_element(one, role, f"{where}, content {place}", rule) for place, one in enumerate(content)]


def _element(element: Any, role: Role, where: str, rule: ImageConfig) -> Part:
    kind = element.get("type") if isinstance(element, Mapping) else None
    value = element.get(kind) if kind in ("text", "image", "video", "image_url", "video_url") else None
    if kind in ("image_url", "video_url") and isinstance(value, Mapping):
        value = value.get("url")
    if value is None:
        raise DataError(
            f'{where}: {{"type": {kind!r}}} is not understood. "type" is text, image, video, image_url or video_url, '
            "and what is meant stands under that name."
        )
    if kind == "text":
        return Text(str(value), role)
    if str(kind).startswith("image"):
        return image_of(value, element, role)
    return video_of(value, {key: one for key, one in element.items() if key not in ("type", kind)}, rule, role)


def _encoded(source: Source) -> bytes:
    if isinstance(source, PIL.Image.Image):
        return _lossless(source)
    if isinstance(source, np.ndarray):
        return _lossless(_pictured(source))
    if not isinstance(source, str | Path | bytes):
        raise DataError(f"a {type(source).__name__} is no picture; give a path, URL, bytes, PIL picture or array.")
    found = _path_or_bytes(source, MAX_IMAGE_BYTES)
    return found if isinstance(found, bytes) else _bounded(str(found), MAX_IMAGE_BYTES)


def _path_or_bytes(source: str | Path | bytes, most: int) -> Path | bytes:
    """Bytes of what is behind a URL; local files stay where they are."""
    if isinstance(source, bytes):
        return source
    text = str(source)
    if isinstance(source, str) and text.startswith("data:"):
        return _data_url(text)
    if isinstance(source, str) and text.startswith(("http://", "https://", "s3://", "gs://")):
        return _bounded(text, most)
    path = Path(urllib.parse.unquote(urllib.parse.urlsplit(text).path)) if text.startswith("file://") else Path(text)
    path = path.expanduser()
    try:
        found = "a folder is" if path.is_dir() else "" if path.is_file() else "no file"
    except OSError:  # a text too long for a path, such as base64 without the beginning of a data: URL
        found = "no file"
    if found:
        raise DataError(f"{found} at {_name(str(path))}.")
    return path


def _bounded(place: str, most: int) -> bytes:
    with open_file(place) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise DataError(f"{place} is larger than {most // 2**20} MiB, the most that is read.")
    return data


def _data_url(text: str) -> bytes:
    head, comma, body = text.partition(",")
    try:
        if not comma or not head.endswith(";base64"):
            raise ValueError("it does not begin as data:image/...;base64,")
        return base64.b64decode(body, validate=True)
    except (ValueError, binascii.Error) as error:
        raise DataError(f"{_name(text)} cannot be read: {error}.") from error


def _lossless(picture: PIL.Image.Image) -> bytes:
    """As bytes that decode to the same pixels; EXIF turns it here, since it would be lost."""
    picture = PIL.ImageOps.exif_transpose(picture)
    transparent = "transparency" in picture.info
    mode = picture.mode
    kind = "BMP" if mode == "RGB" and not transparent else "TIFF" if mode in ("I", "F") else "PNG"
    if kind == "PNG" and mode not in (*PNG_MODES, "RGB"):
        picture = picture.convert("RGBA" if mode.lower() in ("pa", "la", "rgba") else "RGB")
    buffer = io.BytesIO()
    picture.save(buffer, kind, **({"compress_level": 1} if kind == "PNG" else {}))
    return buffer.getvalue()


def _pictured(array: np.ndarray) -> PIL.Image.Image:
    is_shaped = array.size and (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4)))
    if array.dtype != np.uint8 or not is_shaped:
        raise DataError(
            f"{_name(array)} is no picture: uint8 values 0..255 of shape [height, width], [height, width, 3] (RGB) or "
            "[height, width, 4] are."
        )
    return PIL.Image.fromarray(np.ascontiguousarray(array))


def _name(source: Source) -> str:
    if isinstance(source, bytes):
        return f"a picture or video of {len(source):,} bytes"
    if isinstance(source, np.ndarray):
        return f"an array of {source.dtype} {list(source.shape)}"
    if isinstance(source, PIL.Image.Image):
        return f"a PIL picture of mode {source.mode}"
    text = str(source)
    return text if len(text) <= 200 else f"{text[:60]}... ({len(text):,} characters)"
