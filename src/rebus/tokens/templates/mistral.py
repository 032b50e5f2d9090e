"""Mistral 7B instruct v0.1 and v0.2: <s>[INST] question [/INST] answer</s>[INST] ...; one <s>, nothing trimmed."""

from collections.abc import Iterator, Sequence

from rebus.tokens.spans import Span, SpecialSpan, TextSpan, Turn, opening
from rebus.tokens.templates.llama2 import rounds
from rebus.tokens.tokenizer import Tokens

SYSTEM = None
SPECIAL: tuple[str, ...] = ()
END = None
OPENED = False


def conversation(turns: Sequence[Turn], tokens: Tokens, *, is_open: bool) -> Iterator[Span]:
    """The space before an answer is the answer's: the model writes it. [/INST] announces it.

    Raises: DataError where the turns are no rounds of question and answer.
    """
    yield from opening(tokens.config)
    for turn in rounds(turns, "", "\n\n", tokens):
        if turn.role == "user":
            yield from (TextSpan("[INST] ", False), *turn.content, TextSpan(" [/INST]", False))
        else:
            yield from (TextSpan(" ", True), *turn.content, SpecialSpan(tokens.config.end_of_text, True))
