"""What a rendered conversation is made of. Every span says by itself whether it is trained on."""

from collections.abc import Iterable
from dataclasses import dataclass

from rebus.pictures.prepare import Visual
from rebus.records import Role
from rebus.tokens.config import TokensConfig


@dataclass(frozen=True)
class TextSpan:
    """Text to tokenise as written; special-looking text stays text.

    joined: no dummy space goes before it, because it goes on with a text (SentencePiece's tokenizers put one before
    every text). Set by `spacing.fit`, which knows the tokenizer.
    """

    text: str
    trainable: bool
    joined: bool = False


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


@dataclass(frozen=True)
class Turn:
    """What one speaker says at a stretch. content: its texts, already joined, and its pictures."""

    role: Role
    content: tuple[Span, ...]


def merge(spans: Iterable[Span]) -> list[Span]:
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


def opening(config: TokensConfig) -> tuple[Span, ...]:
    """The token that begins a conversation, where there is one; nobody says it, so it is no target."""
    return (SpecialSpan(config.start_of_text, trainable=False),) if config.start_of_text is not None else ()


def strip(content: Iterable[Span]) -> tuple[Span, ...]:
    """Without the white space at both ends, as templates that trim what is said leave it, and without empty texts."""
    spans = merge(content)
    if spans and isinstance(spans[0], TextSpan):
        spans[0] = TextSpan(spans[0].text.lstrip(), spans[0].trainable)
    if spans and isinstance(spans[-1], TextSpan):
        spans[-1] = TextSpan(spans[-1].text.rstrip(), spans[-1].trainable)
    return tuple(span for span in spans if not isinstance(span, TextSpan) or span.text)
