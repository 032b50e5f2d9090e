"""Sample -> Encoded: ids, loss mask and image slots in one pass. No pixel is decoded, no text tokenised twice."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rebus.errors import DataError
from rebus.records import Image, Part, Sample
from rebus.tokens.images import num_image_tokens
from rebus.tokens.template import ImageSpan, Span, SpecialSpan, TextSpan, render, render_prompt
from rebus.tokens.tokenizer import Tokens, special_id

IMAGE_ID = -1
"""Stands at every position of an image. In no vocabulary, so that text can never collide with it."""


class UnusableSample(DataError):
    """A sample that cannot be trained on. `reason` is one of a few words, to count by."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Encoded:
    """One document. T tokens, n images.

    ids: int32 [T], IMAGE_ID at image slots. trainable: bool [T], True where the token is a target.
    image_starts, image_lengths: int32 [n], positions in T. images: what fills the slots, undecoded.
    """

    ids: np.ndarray
    trainable: np.ndarray
    image_starts: np.ndarray
    image_lengths: np.ndarray
    images: tuple[Image, ...]

    @property
    def num_tokens(self) -> int:
        return len(self.ids)

    @property
    def num_supervised(self) -> int:
        """Targets that some position predicts: nothing precedes the first token, so it never counts."""
        return int(self.trainable[1:].sum())


@dataclass(frozen=True)
class Count:
    """Lengths of one document, in tokens."""

    num_tokens: int
    num_images: int
    num_image_tokens: int


def encode(sample: Sample, tokens: Tokens) -> Encoded:
    """Tokenises a sample for training.

    Raises: UnusableSample where nothing of it would be trained on ("no supervised token") or where it is longer than
    `max_tokens` ("too long").
    """
    config = tokens.config
    encoded = encode_spans(render(sample, config), tokens)
    if encoded.num_tokens > config.max_tokens:
        raise UnusableSample("too long", f"{encoded.num_tokens} tokens, max_tokens is {config.max_tokens}")
    if encoded.num_supervised == 0:
        raise UnusableSample("no supervised token", f"none of its {encoded.num_tokens} tokens is a target")
    return encoded


def encode_prompt(parts: Sequence[Part], tokens: Tokens) -> Encoded:
    """Tokenises what precedes an answer, up to and including the assistant's header where the template has one."""
    return encode_spans(render_prompt(parts, tokens.config), tokens)


def count(sample: Sample, tokens: Tokens) -> Count:
    """The lengths that `encode` would give, with the same errors. Neither decodes a pixel."""
    encoded = encode(sample, tokens)
    return Count(encoded.num_tokens, len(encoded.images), int(encoded.image_lengths.sum()))


def encode_spans(spans: Sequence[Span], tokens: Tokens) -> Encoded:
    """Tokenises rendered spans; ids and mask grow together, so they cannot disagree."""
    pieces = [_span_ids(span, tokens) for span in spans]
    lengths = np.array([len(piece) for piece in pieces], dtype=np.int32)
    starts = np.cumsum(lengths, dtype=np.int32) - lengths
    is_image = np.array([isinstance(span, ImageSpan) for span in spans], dtype=bool)
    trainable = np.array([not isinstance(span, ImageSpan) and span.trainable for span in spans], dtype=bool)
    return Encoded(
        ids=np.fromiter((number for piece in pieces for number in piece), np.int32, int(lengths.sum())),
        trainable=np.repeat(trainable, lengths),
        image_starts=starts[is_image],
        image_lengths=lengths[is_image],
        images=tuple(span.image for span in spans if isinstance(span, ImageSpan)),
    )


def _span_ids(span: Span, tokens: Tokens) -> list[int]:
    match span:
        case TextSpan():
            return tokens.tokenizer.encode(span.text, add_special_tokens=False).ids
        case SpecialSpan():
            return [special_id(tokens.tokenizer, span.token, tokens.config.tokenizer)]
        case ImageSpan():
            return [IMAGE_ID] * num_image_tokens(span.image.width, span.image.height, tokens.config.image)
