"""Sample -> Encoded: ids, loss mask and image slots in one pass. No pixel is decoded, no text tokenised twice."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rebus.errors import DataError
from rebus.pictures.prepare import Layout, Visual, layout
from rebus.records import Part, Sample
from rebus.tokens.spans import ImageSpan, Span, SpecialSpan, TextSpan
from rebus.tokens.template import render, render_prompt
from rebus.tokens.tokenizer import Tokens, special_id

TOO_LONG, UNREADABLE, UNUSABLE_SIZE = "too long", "unreadable", "unusable picture size"
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
    image_starts, image_lengths: int32 [n], positions in T. images: what fills the slots, undecoded; a video is one
    where the image rule keeps it whole. grids: int32 [n, 3], see pictures.prepare.Grid. seconds: float32 [n], of video
    in one step of time.
    """

    ids: np.ndarray
    trainable: np.ndarray
    image_starts: np.ndarray
    image_lengths: np.ndarray
    images: tuple[Visual, ...]
    grids: np.ndarray
    seconds: np.ndarray

    @property
    def num_tokens(self) -> int:
        return len(self.ids)

    @property
    def slots(self) -> np.ndarray:
        """int32 [n, 2]: start and length of each slot."""
        return np.stack([self.image_starts, self.image_lengths], axis=1)

    @property
    def num_supervised(self) -> int:
        """Targets that some position predicts: nothing precedes the first token, so it never counts."""
        return int(self.trainable[1:].sum())


@dataclass(frozen=True)
class Count:
    """How large one document is. num_patches: of all its images together, what the tower's work is counted in."""

    num_tokens: int
    num_images: int
    num_image_tokens: int
    num_patches: int = 0


def encode(sample: Sample, tokens: Tokens) -> Encoded:
    """Tokenises a sample for training.

    Raises: UnusableSample where nothing of it would be trained on ("no supervised token") or where it is longer than
    `max_tokens` ("too long").
    """
    encoded = encode_spans(render(sample, tokens), tokens)
    refusal = _refusal(encoded.num_tokens, encoded.num_supervised, tokens)
    if refusal is not None:
        raise refusal
    return encoded


def _refusal(num_tokens: int, num_supervised: int, tokens: Tokens) -> UnusableSample | None:
    limit = tokens.config.max_tokens
    if num_tokens > limit:
        return UnusableSample(TOO_LONG, f"{num_tokens} tokens, max_tokens is {limit}")
    if num_supervised == 0:
        return UnusableSample("no supervised token", f"none of its {num_tokens} tokens is a target")
    return None


def encode_prompt(parts: Sequence[Part], tokens: Tokens) -> Encoded:
    """Tokenises what precedes an answer, up to and including the assistant's header where the template has one."""
    return encode_spans(render_prompt(parts, tokens), tokens)


def count(sample: Sample, tokens: Tokens) -> Count:
    """The lengths that `encode` would give, with the same errors. Neither decodes a pixel."""
    counted = count_batch([sample], tokens)[0]
    if isinstance(counted, UnusableSample):
        raise counted
    return counted


def count_batch(samples: Sequence[Sample], tokens: Tokens) -> list[Count | UnusableSample]:
    """`count` of many samples, or why one cannot be trained on; one with no layout (DataError) is "unreadable".

    All their texts are tokenised in one call, each once: headers and line breaks recur in every conversation. Neither
    ids nor masks are built, only their lengths: two to three times as fast as `encode`, sample by sample.
    """
    layouts = [_layout(sample, tokens) for sample in samples]
    texts: dict[bool, set[str]] = {False: set(), True: set()}  # whether they go on with another
    for spans in layouts:
        if isinstance(spans, list):
            for span in spans:
                if isinstance(span, TextSpan):
                    texts[span.joined].add(span.text)
    lengths = {joined: _text_lengths(some, tokens, joined) for joined, some in texts.items()}
    return [_count_spans(layout, lengths, tokens) if isinstance(layout, list) else layout for layout in layouts]


def _layout(sample: Sample, tokens: Tokens) -> list[Span] | UnusableSample:
    try:
        return render(sample, tokens)
    except DataError as error:
        return UnusableSample(UNREADABLE, str(error))


def _text_lengths(texts: set[str], tokens: Tokens, joined: bool) -> dict[str, int]:
    """Tokens of each text. Which order a set has does not matter: each is tokenised by itself."""
    ordered = list(texts)
    tokenizer = tokens.continuing if joined else tokens.tokenizer
    encodings = tokenizer.encode_batch_fast(ordered, add_special_tokens=False)
    return dict(zip(ordered, map(len, encodings), strict=True))


def _count_spans(
    spans: Sequence[Span], text_lengths: dict[bool, dict[str, int]], tokens: Tokens
) -> Count | UnusableSample:
    """The sums that encode_spans would find in ids and mask; nothing predicts the first token, so it never counts."""
    num_tokens = num_supervised = num_images = num_pictured = num_patches = 0
    for span in spans:
        if isinstance(span, ImageSpan):
            try:
                found = layout(span.image, tokens.config.image)
            except ValueError as error:
                return UnusableSample(UNUSABLE_SIZE, str(error))
            length = found.num_tokens
            num_images, num_pictured, num_patches = (
                num_images + 1,
                num_pictured + length,
                num_patches + found.num_patches,
            )
        else:
            length = text_lengths[span.joined][span.text] if isinstance(span, TextSpan) else 1
            if span.trainable:
                num_supervised += length if num_tokens else max(0, length - 1)
        num_tokens += length
    return _refusal(num_tokens, num_supervised, tokens) or Count(num_tokens, num_images, num_pictured, num_patches)


def encode_spans(spans: Sequence[Span], tokens: Tokens) -> Encoded:
    """Tokenises rendered spans; ids and mask grow together, so they cannot disagree.

    Raises: UnusableSample where the image rule refuses a picture's size.
    """
    ids: list[int] = []
    trainable = bytearray()
    slots: list[int] = []
    images = tuple(span.image for span in spans if isinstance(span, ImageSpan))
    layouts = [_layout_of(image, tokens) for image in images]
    coming = iter(layouts)
    for span in spans:
        if isinstance(span, ImageSpan):
            slots.append(len(ids))
            piece = [IMAGE_ID] * next(coming).num_tokens
        else:
            piece = _span_ids(span, tokens)
        is_target = not isinstance(span, ImageSpan) and span.trainable
        trainable += (b"\1" if is_target else b"\0") * len(piece)
        ids += piece
    return Encoded(
        ids=np.array(ids, dtype=np.int32),
        trainable=np.frombuffer(trainable, dtype=bool),
        image_starts=np.array(slots, dtype=np.int32),
        image_lengths=np.array([one.num_tokens for one in layouts], dtype=np.int32),
        images=images,
        grids=np.array([one.grid for one in layouts], dtype=np.int32).reshape(-1, 3),
        seconds=np.array([one.seconds for one in layouts], dtype=np.float32),
    )


def _layout_of(visual: Visual, tokens: Tokens) -> Layout:
    try:
        return layout(visual, tokens.config.image)
    except ValueError as error:
        raise UnusableSample(UNUSABLE_SIZE, str(error)) from error


def _span_ids(span: TextSpan | SpecialSpan, tokens: Tokens) -> list[int]:
    if isinstance(span, TextSpan):
        tokenizer = tokens.continuing if span.joined else tokens.tokenizer
        return tokenizer.encode(span.text, add_special_tokens=False).ids
    return [special_id(tokens.tokenizer, span.token, tokens.config.tokenizer)]
