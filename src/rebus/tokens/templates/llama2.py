"""LLaMA-2 chat: <s>[INST] question [/INST] answer </s>, a <s> each round, the system inside the first question."""

from collections.abc import Iterator, Sequence

from rebus.errors import DataError
from rebus.tokens.spans import Span, SpecialSpan, TextSpan, Turn, opening, strip
from rebus.tokens.tokenizer import Tokens

SYSTEM = None
SPECIAL: tuple[str, ...] = ()
END = None
OPENED = False


def conversation(turns: Sequence[Turn], tokens: Tokens, *, is_open: bool) -> Iterator[Span]:
    """The spaces around an answer are trained on: the model writes both, one of them before </s>. [/INST] announces it.

    Raises: DataError where the turns are no rounds of question and answer.
    """
    for turn in rounds(turns, "<<SYS>>\n", "\n<</SYS>>\n\n", tokens):
        content = strip(turn.content)
        if turn.role == "user":
            yield from opening(tokens.config)
            yield from (TextSpan("[INST] ", False), *content, TextSpan(" [/INST]", False))
        else:
            yield from (TextSpan(" ", True), *content, TextSpan(" ", True))
            yield SpecialSpan(tokens.config.end_of_text, trainable=True)


def rounds(turns: Sequence[Turn], before: str, after: str, tokens: Tokens) -> list[Turn]:
    """Turns of user and assistant by turns, the system's words between `before` and `after` in the first of them.

    Raises: DataError where the assistant speaks first, or the system later than first.
    """
    told: tuple[Span, ...] = ()
    if turns and turns[0].role == "system":
        told = (TextSpan(before, False), *turns[0].content, TextSpan(after, False))
        turns = turns[1:]
    roles = [turn.role for turn in turns]
    if roles != ["assistant" if place % 2 else "user" for place in range(len(roles))] or not roles:
        raise DataError(
            f"template '{tokens.config.template}' has no place for the turns {roles}: a question and an answer by "
            "turns, a system prompt before them at most. Drop such conversations, or train with `template: chatml`."
        )
    return [Turn("user", (*told, *turns[0].content)), *turns[1:]]
