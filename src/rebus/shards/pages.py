"""Interleaved pages: text and pictures in turn."""

from collections.abc import Mapping, Sequence
from typing import Any

from rebus.records import Image, Part, Text
from rebus.shards.damage import (
    BAD_JSON,
    EMPTY_CAPTION,
    PLACEHOLDER,
    PLACEHOLDER_IN_CAPTION,
    DamagedSampleError,
    check_length,
    match_images,
)


def page_parts(metadata: Mapping[str, Any], images: Sequence[Image]) -> list[Part]:
    """OBELICS' form: a list of texts in which null is the place of the next image."""
    texts = metadata["texts"]
    if not isinstance(texts, list) or not all(text is None or isinstance(text, str) for text in texts):
        raise DamagedSampleError(BAD_JSON, "`texts` is no list of strings and nulls")
    match_images(texts.count(None), len(images))
    if not any(text and text.strip() for text in texts):
        raise DamagedSampleError(EMPTY_CAPTION, "a page without text")
    if any(PLACEHOLDER in text for text in texts if text):
        raise DamagedSampleError(PLACEHOLDER_IN_CAPTION, "in a page")
    check_length(sum(len(text) for text in texts if text))
    following = iter(images)
    return [next(following) if text is None else Text(text) for text in texts if text != ""]
