"""LLaVA-NeXT on LLaMA-3 (Open-LLaVA-NeXT's `llava_llama_3`): LLaMA-3 with LLaVA's system prompt, nothing trimmed."""

from collections.abc import Iterator, Sequence

from rebus.tokens.spans import Span, Turn
from rebus.tokens.templates import llama3
from rebus.tokens.tokenizer import Tokens

SYSTEM = (
    "You are a helpful language and vision assistant. "
    "You are able to understand the visual content that the user provides, "
    "and assist the user with a variety of tasks using natural language."
)
SPECIAL = llama3.SPECIAL
END = llama3.END
OPENED = False


def conversation(turns: Sequence[Turn], tokens: Tokens, *, is_open: bool) -> Iterator[Span]:
    """One <|begin_of_text|>: the original wrote it into the system prompt, and its tokenizer a second time."""
    yield from llama3.laid_out(turns, tokens, is_open=is_open)
