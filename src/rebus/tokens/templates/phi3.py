"""Phi-3 and Phi-3.5: <|role|>, a line break, what is said, <|end|>, a line break.

The released tokenizers mark these tokens `rstrip`: they swallow the white space that follows, line breaks too. What
the tokenizer does to text, `spacing.fit` does here.
"""

from collections.abc import Iterator, Sequence

from rebus.tokens.spans import Span, SpecialSpan, TextSpan, Turn
from rebus.tokens.tokenizer import Tokens

TURN_END = "<|end|>"
SYSTEM = None
SPECIAL = ("<|system|>", "<|user|>", "<|assistant|>", TURN_END)
END = TURN_END
OPENED = True


def conversation(turns: Sequence[Turn], tokens: Tokens, *, is_open: bool) -> Iterator[Span]:
    """The assistant's words and <|end|> are trained on."""
    for turn in turns:
        yield from _header(turn.role)
        yield from turn.content
        yield SpecialSpan(TURN_END, trainable=turn.role == "assistant")
        yield TextSpan("\n", trainable=False)
    if is_open:
        yield from _header("assistant")


def _header(role: str) -> tuple[Span, ...]:
    return SpecialSpan(f"<|{role}|>", trainable=False), TextSpan("\n", trainable=False)
