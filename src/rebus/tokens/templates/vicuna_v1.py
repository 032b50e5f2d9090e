"""Vicuna v1, as LLaVA 1.5 and LLaVA-NeXT use it: USER: ... ASSISTANT: ...</s>. The tokenizer puts <s> before it."""

from collections.abc import Iterator, Sequence

from rebus.tokens.spans import Span, SpecialSpan, TextSpan, Turn
from rebus.tokens.tokenizer import Tokens

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
SPECIAL: tuple[str, ...] = ()
END = None
OPENED = True
ASSISTANT = TextSpan(" ASSISTANT:", trainable=False)


def conversation(turns: Sequence[Turn], tokens: Tokens, *, is_open: bool) -> Iterator[Span]:
    """A space parts speakers, but none follows </s>. The space before an answer is the answer's: it is generated."""
    gap = ""
    for turn in turns:
        if turn.role == "assistant":
            yield ASSISTANT
            yield TextSpan(" ", trainable=True)
            yield from turn.content
            yield SpecialSpan(tokens.config.end_of_text, trainable=True)
            gap = ""
        else:
            yield TextSpan(gap + ("USER: " if turn.role == "user" else ""), trainable=False)
            yield from turn.content
            gap = " "
    if is_open:
        yield ASSISTANT
