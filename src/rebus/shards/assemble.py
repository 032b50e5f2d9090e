"""Members of a sample -> Sample. The index checks with it, readers read with it: one truth about what is usable."""

import io
import json
import re
import struct
import warnings
from collections.abc import Mapping
from typing import Any

# Pillow registers a format when its plugin is imported; it tries only registered ones.
import PIL.BmpImagePlugin
import PIL.GifImagePlugin
import PIL.Image
import PIL.JpegImagePlugin
import PIL.MpoImagePlugin
import PIL.PngImagePlugin
import PIL.WebPImagePlugin

from rebus.errors import DataError
from rebus.records import Image, Part, Role, Sample, Text, content_uid

PLACEHOLDER = "<image>"
MAX_CAPTION_CHARS = 32_768  # alt texts reach some thousand; beyond lie whole pages that a crawler took for a caption
MAX_DOCUMENT_CHARS = 1_000_000  # of a conversation or a page

DECODERS = ("WEBP", "JPEG", "PNG", "GIF", "BMP")
FORMATS = {"WEBP": "webp", "JPEG": "jpg", "MPO": "jpg", "PNG": "png", "GIF": "gif", "BMP": "bmp"}
"""Picture formats that are opened, and their extension (MPO is a camera's JPEG). No other decoder runs on foreign
bytes: Pillow knows some fifty, one of which (EPS) starts Ghostscript."""

_IMAGE_NAME = re.compile(r"(?:(\d{1,6})\.)?(?:webp|jpe?g|png|gif|bmp)")
_UID = re.compile(r"[0-9a-fA-F]{32}")
_ROLES: dict[str, Role] = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system",
}  # fmt: skip

ZERO_BYTE_IMAGE = "zero-byte image"
UNREADABLE_IMAGE = "unreadable image header"
UNDECODABLE_IMAGE = "undecodable image"
BOMB = "decompression bomb"
MISSING_IMAGE = "missing image"
SURPLUS_IMAGE = "more than one image"
MISSING_CAPTION = "missing caption"
EMPTY_CAPTION = "empty caption"
OVERSIZED_CAPTION = "oversized caption"
PLACEHOLDER_IN_CAPTION = "<image> in a caption"
PLACEHOLDER_MISMATCH = "placeholder count mismatch"
NO_ASSISTANT_TEXT = "no assistant text"
UNKNOWN_ROLE = "unknown role"
BAD_UTF8 = "bad UTF-8"
BAD_JSON = "bad JSON"


class DamagedSampleError(DataError):
    """This one sample cannot be used. reason: one of the constants above; detail: what exactly."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


def assemble(key: str, source: str, members: Mapping[str, bytes]) -> tuple[str, Sample]:
    """Builds a sample from its members (extension -> bytes).

    Returns: its kind ("caption", "conversation" or "page") and the sample. A `txt` makes a caption; else the json
    decides: `conversations` or `messages`, or a page's `texts`.
    Raises: DamagedSampleError with the reason.
    """
    metadata = parse_json(members["json"]) if "json" in members else {}
    images = [probe_image(members[name]) for name in image_names(members)]
    if "txt" in members:
        kind, parts = "caption", _caption(parse_text(members["txt"]), images)
    elif "texts" in metadata:
        kind, parts = "page", _page(metadata["texts"], images)
    elif "conversations" in metadata or "messages" in metadata:
        kind, parts = "conversation", _conversation(metadata, images)
    else:
        raise DamagedSampleError(MISSING_CAPTION, "no txt, and no conversation or texts in the json")
    return kind, Sample(key, uid_of(metadata, members), source, tuple(parts))


def image_names(members: Mapping[str, bytes]) -> list[str]:
    """Extensions of the images, in order: `jpg`, or `0.jpg`, `1.jpg` ..."""
    matches = [(int(found[1] or 0), name) for name in members if (found := _IMAGE_NAME.fullmatch(name))]
    return [name for _, name in sorted(matches)]


def uid_of(metadata: Mapping[str, Any], members: Mapping[str, bytes]) -> str:
    """The uid that the source gave, else a hash of images and text."""
    uid = metadata.get("uid")
    if isinstance(uid, str) and _UID.fullmatch(uid):
        return uid.lower()
    text = members["txt"] if "txt" in members else members.get("json", b"")
    return content_uid(*(members[name] for name in image_names(members)), text)


def parse_text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DamagedSampleError(BAD_UTF8, str(error)) from error


def parse_json(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(parse_text(data))
    except (ValueError, RecursionError) as error:
        raise DamagedSampleError(BAD_JSON, str(error)) from error
    if not isinstance(value, dict):
        raise DamagedSampleError(BAD_JSON, f"an object is wanted, not a {type(value).__name__}")
    return value


def open_header(data: bytes) -> PIL.Image.Image:
    """Opens a picture without decoding its pixels. Raises: DamagedSampleError."""
    if not data:
        raise DamagedSampleError(ZERO_BYTE_IMAGE)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
            return PIL.Image.open(io.BytesIO(data), formats=DECODERS)
    except (PIL.Image.DecompressionBombWarning, PIL.Image.DecompressionBombError) as error:
        raise DamagedSampleError(BOMB, str(error)) from error
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        detail = f"{len(data)} bytes that begin with {data[:8]!r}: {', '.join(sorted(set(FORMATS.values())))} are read"
        raise DamagedSampleError(UNREADABLE_IMAGE, detail) from error


def probe_image(data: bytes, role: Role = "") -> Image:
    """Size from the header. Raises: DamagedSampleError."""
    width, height = open_header(data).size
    if width < 1 or height < 1:
        raise DamagedSampleError(UNREADABLE_IMAGE, f"{width} x {height} pixels")
    return Image(width, height, data, role)


def _caption(text: str, images: list[Image]) -> list[Part]:
    if not images:
        raise DamagedSampleError(MISSING_IMAGE)
    if len(images) > 1:
        raise DamagedSampleError(SURPLUS_IMAGE, f"{len(images)} images for one caption")
    if not text.strip():
        raise DamagedSampleError(EMPTY_CAPTION)
    if len(text) > MAX_CAPTION_CHARS:
        raise DamagedSampleError(OVERSIZED_CAPTION, f"{len(text)} characters, the limit is {MAX_CAPTION_CHARS}")
    if PLACEHOLDER in text:
        raise DamagedSampleError(PLACEHOLDER_IN_CAPTION)
    return [images[0], Text(text)]


def _page(texts: Any, images: list[Image]) -> list[Part]:
    """OBELICS' form: a list of texts in which null is the place of the next image."""
    if not isinstance(texts, list) or not all(text is None or isinstance(text, str) for text in texts):
        raise DamagedSampleError(BAD_JSON, "`texts` is no list of strings and nulls")
    _match(texts.count(None), len(images))
    if not any(text and text.strip() for text in texts):
        raise DamagedSampleError(EMPTY_CAPTION, "a page without text")
    if any(PLACEHOLDER in text for text in texts if text):
        raise DamagedSampleError(PLACEHOLDER_IN_CAPTION, "in a page")
    _limit(sum(len(text) for text in texts if text))
    following = iter(images)
    return [next(following) if text is None else Text(text) for text in texts if text != ""]


def _conversation(metadata: Mapping[str, Any], images: list[Image]) -> list[Part]:
    """LLaVA's `conversations` (from, value) or `messages` (role, content), images at their placeholders."""
    turns = [_turn(entry) for entry in _turns(metadata)]
    if not any(role == "assistant" and text.strip() for role, text in turns):
        raise DamagedSampleError(NO_ASSISTANT_TEXT)
    if any(role == "assistant" and PLACEHOLDER in text for role, text in turns):
        raise DamagedSampleError(PLACEHOLDER_MISMATCH, f"the assistant's text holds {PLACEHOLDER}")
    _match(sum(text.count(PLACEHOLDER) for _, text in turns), len(images))
    _limit(sum(len(text) for _, text in turns))
    parts: list[Part] = []
    following = iter(images)
    for role, text in turns:
        for index, piece in enumerate(text.split(PLACEHOLDER)):
            if index:
                image = next(following)
                parts.append(Image(image.width, image.height, image.data, "user"))
            if piece:
                parts.append(Text(piece, role))
    return parts


def _turns(metadata: Mapping[str, Any]) -> list[Any]:
    turns = metadata["conversations"] if "conversations" in metadata else metadata["messages"]
    if not isinstance(turns, list):
        raise DamagedSampleError(BAD_JSON, f"turns are a {type(turns).__name__}, not a list")
    return turns


def _turn(entry: Any) -> tuple[Role, str]:
    if not isinstance(entry, dict):
        raise DamagedSampleError(BAD_JSON, f"a turn is a {type(entry).__name__}, not an object")
    name = entry.get("from", entry.get("role"))
    if not isinstance(name, str) or name not in _ROLES:
        raise DamagedSampleError(UNKNOWN_ROLE, f"{name!r}; known are {', '.join(_ROLES)}")
    content = entry.get("value", entry.get("content"))
    if isinstance(content, list):
        content = "".join(_content_piece(piece) for piece in content)
    if not isinstance(content, str):
        raise DamagedSampleError(BAD_JSON, f"a turn's text is a {type(content).__name__}")
    return _ROLES[name], content


def _content_piece(piece: Any) -> str:
    """One entry of the chat form {"type": "text", "text": ...} or {"type": "image"}."""
    if isinstance(piece, dict) and piece.get("type") == "image":
        return PLACEHOLDER
    if isinstance(piece, dict) and isinstance(piece.get("text"), str):
        return piece["text"]
    raise DamagedSampleError(BAD_JSON, "a turn's content holds something that is neither text nor image")


def _match(num_placeholders: int, num_images: int) -> None:
    if num_placeholders != num_images:
        raise DamagedSampleError(PLACEHOLDER_MISMATCH, f"{num_placeholders} placeholders for {num_images} images")


def _limit(num_chars: int) -> None:
    if num_chars > MAX_DOCUMENT_CHARS:
        raise DamagedSampleError(OVERSIZED_CAPTION, f"{num_chars} characters, the limit is {MAX_DOCUMENT_CHARS}")
