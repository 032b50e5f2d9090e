"""The one template renderer: parts -> spans. Training, evaluation, chat and the server lay out samples here alone.

Every span says by itself whether it is trained on, so the loss mask is built, never found again by re-tokenising.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby

from rebus.errors import DataError
from rebus.pictures.prepare import Visual, visuals_of
from rebus.records import Image, Part, Role, Sample, Text
from rebus.tokens.config import TokensConfig
from rebus.tokens.tokenizer import TURN_END, TURN_START


@dataclass(frozen=True)
class TextSpan:
    """Text to tokenise as written; special-looking text stays text."""

    text: str
    trainable: bool


@dataclass(frozen=True)
class SpecialSpan:
    """One special token, by name."""

    token: str
    trainable: bool


@dataclass(frozen=True)
class ImageSpan:
    """The positions of one picture, or of a video that the image rule keeps whole; never trained on."""

    image: Visual


Span = TextSpan | SpecialSpan | ImageSpan


def render(sample: Sample, config: TokensConfig) -> list[Span]:
    """Lays out a whole sample. A document (no part has a role) is rendered as plain under every template."""
    if config.template == "plain" or _is_document(sample.parts):
        return [
            *_opening(config),
            *_merge(_content(sample.parts, config)),
            SpecialSpan(config.end_of_text, trainable=True),
        ]
    return _merge(span for role, parts in _turns(sample.parts) for span in _turn(role, parts, config))


def render_prompt(parts: Sequence[Part], config: TokensConfig) -> list[Span]:
    """Lays out what precedes an answer. Under chatml it ends with the assistant's header; nothing closes it."""
    if config.template == "plain" or _is_document(parts):
        return [*_opening(config), *_merge(_content(parts, config))]
    turns = [span for role, turn in _turns(parts) for span in _turn(role, turn, config)]
    return _merge([*turns, *_header("assistant")])


def user_turn(text: str, images: Sequence[Image] = ()) -> list[Part]:
    """What a person says about pictures: each picture, a line break, then the words (LLaVA's `<image>\\n` layout)."""
    shown = [part for image in images for part in (replace(image, role="user"), Text("\n", "user"))]
    return [*shown, Text(text, "user")]


def _is_document(parts: Sequence[Part]) -> bool:
    return all(part.role == "" for part in parts)


def _opening(config: TokensConfig) -> list[Span]:
    """A target where something precedes it: the document before, in a pack that is laid out as one (Open-Qwen2VL)."""
    return [SpecialSpan(config.start_of_text, trainable=True)] if config.start_of_text is not None else []


def _content(parts: Iterable[Part], config: TokensConfig) -> list[Span]:
    spans: list[Span] = []
    before, after = ([SpecialSpan(name, False)] if name else [] for name in (config.image_start, config.image_end))
    for part in parts:
        if isinstance(part, Text):
            spans.append(TextSpan(part.text, part.trainable))
        else:
            for visual in visuals_of(part, config.image):
                spans += [*before, ImageSpan(visual), *after]
    return spans


def _turns(parts: Sequence[Part]) -> list[tuple[Role, list[Part]]]:
    """Neighbouring parts of one role are one turn; an image without a role joins the turn that follows it."""
    parts = list(parts)
    for index in range(len(parts) - 1, -1, -1):
        part = parts[index]
        if part.role == "" and not isinstance(part, Text) and index + 1 < len(parts):
            parts[index] = replace(part, role=parts[index + 1].role)
        elif part.role == "":
            kind = type(part).__name__.lower()
            raise DataError(f"part {index} ({kind}) of a conversation has no role; every part needs who speaks.")
    return [(role, list(turn)) for role, turn in groupby(parts, key=lambda part: part.role)]


def _turn(role: Role, parts: Sequence[Part], config: TokensConfig) -> list[Span]:
    """The assistant's words and the token that ends them are trained on; the line break after it belongs to nobody."""
    return [*_header(role), *_content(parts, config), *_footer(role)]


@cache
def _header(role: Role) -> tuple[Span, ...]:
    return SpecialSpan(TURN_START, trainable=False), TextSpan(f"{role}\n", trainable=False)


@cache
def _footer(role: Role) -> tuple[Span, ...]:
    """Made once a role, as the header is: planning lays out ten million conversations."""
    return SpecialSpan(TURN_END, trainable=role == "assistant"), TextSpan("\n", trainable=False)


def _merge(spans: Iterable[Span]) -> list[Span]:
    """Joins neighbouring text of one kind, so that it is tokenised in one go: "user\\n" with what the user says."""
    merged: list[Span] = []
    last: Span | None = None
    for span in spans:
        if type(span) is type(last) is TextSpan and span.trainable == last.trainable:
            last = merged[-1] = TextSpan(last.text + span.text, last.trainable)
        else:
            last = span
            merged.append(span)
    return merged
