"""LLaMA-3 instruct: <|start_header_id|>role<|end_header_id|>, an empty line, what is said, trimmed, <|eot_id|>."""

from collections.abc import Iterator, Sequence
from functools import cache

from rebus.tokens.spans import Span, SpecialSpan, TextSpan, Turn, opening, strip
from rebus.tokens.tokenizer import Tokens

HEADER_START, HEADER_END, TURN_END = "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"
SYSTEM = None
SPECIAL = (HEADER_START, HEADER_END, TURN_END)
END = TURN_END
OPENED = False


def conversation(turns: Sequence[Turn], tokens: Tokens, *, is_open: bool) -> Iterator[Span]:
    """Begins with <|begin_of_text|>, once. The released template trims what everybody says."""
    yield from laid_out([Turn(turn.role, strip(turn.content)) for turn in turns], tokens, is_open=is_open)


def laid_out(turns: Sequence[Turn], tokens: Tokens, *, is_open: bool) -> Iterator[Span]:
    """The turns as they are, for `llava_llama_3` too."""
    yield from opening(tokens.config)
    for turn in turns:
        yield from _header(turn.role)
        yield from turn.content
        yield SpecialSpan(TURN_END, trainable=turn.role == "assistant")
    if is_open:
        yield from _header("assistant")


@cache
def _header(role: str) -> tuple[Span, ...]:
    return (
        SpecialSpan(HEADER_START, trainable=False),
        TextSpan(role, trainable=False),
        SpecialSpan(HEADER_END, trainable=False),
        TextSpan("\n\n", trainable=False),
    )
