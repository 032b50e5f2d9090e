"""The tokenizer's own chat template, filled with what is said; `chat_template` says how it is read."""

from collections.abc import Iterator, Sequence

from rebus.errors import DataError
from rebus.pictures.prepare import Visual
from rebus.records import Video
from rebus.tokens.chat_template import Hole, Place, skeleton
from rebus.tokens.spans import ImageSpan, Span, SpecialSpan, TextSpan, Turn, merge
from rebus.tokens.tokenizer import Tokens

SYSTEM = None
SPECIAL: tuple[str, ...] = ()
END = None  # the template's own, see tokenizer.turn_end
OPENED = True


def conversation(turns: Sequence[Turn], tokens: Tokens, *, is_open: bool) -> Iterator[Span]:
    """Pictures follow the template's order, each kind in its own.

    Raises: DataError where the template refuses such a conversation.
    """
    if tokens.chat is None:
        raise DataError("template 'own' needs the tokenizer's chat template; load_tokens reads it.")
    said = [merge(span for span in turn.content if not isinstance(span, SpecialSpan)) for turn in turns]
    shape = tuple((turn.role, tuple(map(_kind, spans))) for turn, spans in zip(turns, said, strict=True))
    everything = [span for spans in said for span in spans]
    waiting = {
        kind: iter([span for span in everything if isinstance(span, ImageSpan) and _kind(span) == kind])
        for kind in ("image", "video")
    }
    for piece in skeleton(tokens.chat, shape, is_open):
        if isinstance(piece, Hole):
            yield from _filled(piece, everything[piece.number], tokens)
        elif isinstance(piece, Place):
            yield next(waiting[piece.kind])
        else:
            yield piece


def _filled(hole: Hole, span: Span, tokens: Tokens) -> Iterator[Span]:
    if isinstance(span, TextSpan):
        text = span.text.lstrip() if hole.trims[0] else span.text
        yield TextSpan(text.rstrip() if hole.trims[1] else text, span.trainable)
    else:
        before, after = tokens.config.image_start, tokens.config.image_end
        yield from [SpecialSpan(before, False)] if before else []
        yield span
        yield from [SpecialSpan(after, False)] if after else []


def _kind(span: Span) -> str:
    if isinstance(span, TextSpan):
        return "text"
    visual: Visual = span.image  # type: ignore[union-attr]
    return "video" if isinstance(visual, Video) else "image"
