"""Members of a sample -> Sample. The index checks with it, readers read with it: one truth about what is usable."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rebus.records import Image, Part, Sample, Text, content_uid
from rebus.shards.damage import (
    ANSWER_FIRST,
    BAD_JSON,
    BAD_UTF8,
    EMPTY_CAPTION,
    MAX_CAPTION_CHARS,
    MISSING_CAPTION,
    MISSING_IMAGE,
    NO_JSON,
    OVERSIZED_CAPTION,
    PLACEHOLDER,
    PLACEHOLDER_IN_CAPTION,
    SURPLUS_IMAGE,
    DamagedSampleError,
)
from rebus.shards.frames import frames_of
from rebus.shards.pages import embedded_images, in_document_order, is_page, page_parts
from rebus.shards.probe import probe_named
from rebus.shards.turns import conversation_parts, opens_with_answer

_IMAGE_NAME = re.compile(r"(?:(\d{1,6})\.)?(?:webp|jpe?g|png|gif|bmp|tiff?)")
_UID = re.compile(r"[0-9a-fA-F]{32}")
_HALF_CHARACTER = re.compile(rb"\\u[dD][89a-fA-F]")


@dataclass(frozen=True)
class Assembled:
    """kind: caption, conversation or page. notes: what is odd about a sample that is usable all the same."""

    kind: str
    sample: Sample
    notes: tuple[str, ...] = ()


def assemble(
    key: str,
    source: str,
    members: Mapping[str, bytes],
    *,
    metadata: Mapping[str, Any] | None = None,
    images: Sequence[Image] | None = None,
    uid: str | None = None,
) -> Assembled:
    """Builds a sample from its members (extension -> bytes). A `txt` makes a caption; else the json decides:
    `conversations` or `messages`, or a page's `texts` or `text_list`.

    metadata: the content of the json, where somebody has parsed it already. images: what stands for the pictures,
    where none is to be looked at (their sizes are known from the index); else they are probed, header by header, each
    frame of a TIFF by itself.
    uid: from the index, where it is known. Raises: DamagedSampleError with the reason.
    """
    if metadata is None:
        metadata = parse_json(members["json"]) if "json" in members else {}
    notes: dict[str, None] = {}  # a set that keeps its order
    if images is None:
        images = _probe(members, metadata, notes)
    if "txt" in members:
        kind, parts = "caption", _caption(parse_text(members["txt"]), images)
        notes |= {} if "json" in members else {NO_JSON: None}
    elif is_page(metadata):
        kind, parts = "page", page_parts(metadata, images)
    elif "conversations" in metadata or "messages" in metadata:
        kind, parts = "conversation", conversation_parts(metadata, images)
        notes |= {ANSWER_FIRST: None} if opens_with_answer(metadata) else {}
    else:
        raise DamagedSampleError(MISSING_CAPTION, "no txt, and no conversation or texts in the json")
    return Assembled(kind, Sample(key, uid or uid_of(metadata, members), source, tuple(parts)), tuple(notes))


def _probe(members: Mapping[str, bytes], metadata: Mapping[str, Any], notes: dict[str, None]) -> list[Image]:
    """The pictures of the members, else those that the json itself carries; what is odd of them goes to `notes`."""
    names = image_names(members)
    found = [(frame, name) for name in names for frame in frames_of(members[name])]
    if not names and "image_info" in metadata:
        found = [(data, "") for data in embedded_images(metadata)]
    images = []
    for data, name in found:
        image, odd = probe_named(data, "png" if name.endswith(("tif", "tiff")) else name)  # what frames become
        images.append(image)
        notes |= dict.fromkeys(odd)
    return images if "txt" in members else in_document_order(metadata, images)


def is_image_name(extension: str) -> bool:
    return _IMAGE_NAME.fullmatch(extension) is not None


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
    value = load_json(data)
    if not isinstance(value, dict):
        raise DamagedSampleError(BAD_JSON, f"an object is wanted, not a {type(value).__name__}")
    return value


def load_json(data: bytes) -> Any:
    """Any value. Half characters (a lone \\ud83d escape) are refused: they are no UTF-8, and no tokenizer takes them.

    Raises: DamagedSampleError.
    """
    try:
        value = json.loads(parse_text(data))
    except (ValueError, RecursionError) as error:
        raise DamagedSampleError(BAD_JSON, str(error)) from error
    if _HALF_CHARACTER.search(data):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise DamagedSampleError(BAD_UTF8, str(error)) from error
    return value


def _caption(text: str, images: Sequence[Image]) -> list[Part]:
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
