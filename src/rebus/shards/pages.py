"""Interleaved pages: text and pictures in turn. Two forms are read, OBELICS' (MINT's is the same) and MMC4's.

OBELICS (arXiv 2306.16527, section 3): lists `texts` and `images` (or `image_info`) of equal length, of which exactly
one is null at each place. MMC4 (arXiv 2304.06939): sentences in `text_list`, and `image_info`, whose entries say
before which sentence they stand (`matched_text_index`). Entries of `image_info` may carry their picture as base64.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from rebus.records import Image, Part, Text
from rebus.shards.damage import (
    BAD_BASE64,
    BAD_JSON,
    EMPTY_CAPTION,
    MISSING_IMAGE,
    PLACEHOLDER,
    PLACEHOLDER_IN_CAPTION,
    PLACEHOLDER_MISMATCH,
    DamagedSampleError,
    check_length,
    match_images,
)

Picture = TypeVar("Picture")

PARAGRAPH, SENTENCE = "\n\n", " "
"""Between neighbouring texts: an entry of `texts` holds whole paragraphs, one of `text_list` a sentence."""


def is_page(metadata: Mapping[str, Any]) -> bool:
    return "texts" in metadata or "text_list" in metadata


def page_parts(metadata: Mapping[str, Any], images: Sequence[Image]) -> list[Part]:
    """Parts in the document's order. images: in that order too (`in_document_order`).

    Raises: DamagedSampleError.
    """
    if "texts" in metadata:
        places, between = _obelics_places(metadata), PARAGRAPH
    else:
        places, between = _mmc4_places(metadata), SENTENCE
    match_images(places.count(None), len(images))
    texts = [place for place in places if place and place.strip()]
    if not texts:
        raise DamagedSampleError(EMPTY_CAPTION, "a page without text")
    if any(PLACEHOLDER in text for text in texts):
        raise DamagedSampleError(PLACEHOLDER_IN_CAPTION, "in a page")
    check_length(sum(map(len, texts)))
    following = iter(images)
    return [next(following) if place is None else Text(place) for place in _separate(places, between)]


def in_document_order(metadata: Mapping[str, Any], images: Sequence[Picture]) -> list[Picture]:
    """Pictures, or their names, that come in the order of the source's list, in the order in which the page shows them.

    Only MMC4's list has an order of its own. Raises: DamagedSampleError.
    """
    if "text_list" not in metadata or "texts" in metadata:
        return list(images)
    indices = _matched_indices(metadata)
    match_images(len(indices), len(images))
    return [images[number] for number in sorted(range(len(indices)), key=indices.__getitem__)]


def embedded_images(metadata: Mapping[str, Any]) -> list[bytes]:
    """The encoded pictures that `image_info` itself carries, in its order; none where no entry carries one.

    Raises: DamagedSampleError for an entry without its picture among others with theirs, and for bad base64.
    """
    entries = metadata.get("image_info")
    entries = list(enumerate(entries)) if isinstance(entries, list) else []
    found = [(place, _carried(entry)) for place, entry in entries if entry]
    if all(text is None for _, text in found):
        return []
    for place, text in found:
        if text is None:
            raise DamagedSampleError(MISSING_IMAGE, f"entry {place} of `image_info` has no image_base64")
    return [decode_base64(text) for _, text in found]


def without_pictures(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of a page without the pictures that it carries: what stands in a json beside them."""
    entries = metadata.get("image_info")
    if not isinstance(entries, list):
        return dict(metadata)
    bare = [_bare(entry) if isinstance(entry, dict) else entry for entry in entries]
    return {**metadata, "image_info": bare}


def decode_base64(text: Any) -> bytes:
    """Bytes of base64 or of a `data:` URI, line breaks allowed. Raises: DamagedSampleError."""
    if not isinstance(text, str):
        raise DamagedSampleError(BAD_BASE64, f"a {type(text).__name__}")
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:  # ValueError: characters beyond ASCII
        raise DamagedSampleError(BAD_BASE64, f"{error}; it begins with {text[:24]!r}") from error


def _carried(entry: Any) -> Any:
    return entry.get("image_base64") if isinstance(entry, dict) else None


def _bare(entry: dict[str, Any]) -> dict[str, Any]:
    """Never empty where the entry was not: an empty one is no picture's place."""
    bare = {name: value for name, value in entry.items() if name != "image_base64"}
    return bare or {"embedded": True} if entry else {}


def _obelics_places(metadata: Mapping[str, Any]) -> list[str | None]:
    """Texts, null where a picture stands."""
    texts = metadata["texts"]
    if not isinstance(texts, list) or not all(text is None or isinstance(text, str) for text in texts):
        raise DamagedSampleError(BAD_JSON, "`texts` is no list of strings and nulls")
    name = "image_info" if metadata.get("image_info") is not None else "images"
    pictures = metadata.get(name)
    if pictures is not None and not isinstance(pictures, list):
        raise DamagedSampleError(BAD_JSON, f"`{name}` is a {type(pictures).__name__}, not a list")
    if pictures is None or len(pictures) != len(texts):  # the pictures alone, without the places of texts
        return list(texts)
    return [_one_of(place, text, picture) for place, (text, picture) in enumerate(zip(texts, pictures, strict=True))]


def _one_of(place: int, text: str | None, picture: Any) -> str | None:
    """An empty text stands for nothing: it neither fights a picture nor replaces one."""
    if picture and text and text.strip():
        raise DamagedSampleError(PLACEHOLDER_MISMATCH, f"place {place} holds a text and a picture")
    if not picture and text is None:
        raise DamagedSampleError(MISSING_IMAGE, f"place {place} holds neither text nor picture")
    return None if picture else text


def _mmc4_places(metadata: Mapping[str, Any]) -> list[str | None]:
    texts = metadata["text_list"]
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise DamagedSampleError(BAD_JSON, "`text_list` is no list of strings")
    indices = _matched_indices(metadata)
    if any(not 0 <= index < len(texts) for index in indices):
        raise DamagedSampleError(PLACEHOLDER_MISMATCH, f"matched_text_index in {indices} for {len(texts)} texts")
    places: list[str | None] = []
    for number, text in enumerate(texts):
        places += [*[None] * indices.count(number), text]
    return places


def _matched_indices(metadata: Mapping[str, Any]) -> list[int]:
    entries = metadata.get("image_info") or []
    if not isinstance(entries, list):
        raise DamagedSampleError(BAD_JSON, f"`image_info` is a {type(entries).__name__}, not a list")
    indices = [entry.get("matched_text_index") if isinstance(entry, dict) else None for entry in entries]
    if not all(isinstance(index, int) for index in indices):
        raise DamagedSampleError(BAD_JSON, "an entry of `image_info` has no matched_text_index")
    return [int(index) for index in indices if index is not None]


def _separate(places: Sequence[str | None], between: str) -> list[str | None]:
    """Drops what is blank; ends a text that another one follows, so that no two words grow together."""
    kept = [place for place in places if place is None or place.strip()]
    return [
        text + between if text and following and not (text[-1].isspace() or following[0].isspace()) else text
        for text, following in zip(kept, [*kept[1:], None], strict=True)
    ]
