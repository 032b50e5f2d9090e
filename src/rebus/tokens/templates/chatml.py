"""ChatML: <|im_start|>role, a line break, what is said, <|im_end|>, a line break. Qwen, SmolLM2."""

from collections.abc import Iterator, Sequence
from functools import cache

from rebus.records import Role
from rebus.tokens.spans import Span, SpecialSpan, TextSpan, Turn
from rebus.tokens.tokenizer import Tokens

TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
SYSTEM = None
SPECIAL = (TURN_START, TURN_END)
END = TURN_END
OPENED = False


def conversation(turns: Sequence[Turn], tokens: Tokens, *, is_open: bool) -> Iterator[Span]:
    """The assistant's words and the token that ends them are trained on; the line break after it belongs to nobody."""
    for turn in turns:
        yield from _opening(turn.role)
        yield from turn.content
        yield from _closing(turn.role)
    if is_open:
        yield from _opening("assistant")


@cache
def _opening(role: Role) -> tuple[Span, ...]:
    return SpecialSpan(TURN_START, trainable=False), TextSpan(f"{role}\n", trainable=False)


@cache
def _closing(role: Role) -> tuple[Span, ...]:
    """Made once a role, as the opening is: planning lays out ten million conversations."""
    return SpecialSpan(TURN_END, trainable=role == "assistant"), TextSpan("\n", trainable=False)
