"""What the released Open-Qwen2VL weights were tuned on: ChatML with the quirks of its Prismatic prompt builder.

A literal <s> before the system turn. The question's <|im_end|> is followed by the bare word `assistant` and a line
break, without line break and <|im_start|> between them. In the first question the token after a picture was lost:
here the line break that stands there. An empty answer is one space.
"""

from collections.abc import Iterator, Sequence

from rebus.tokens.spans import ImageSpan, Span, SpecialSpan, TextSpan, Turn, opening, strip
from rebus.tokens.templates.chatml import TURN_END, TURN_START
from rebus.tokens.tokenizer import Tokens

SYSTEM = "You are a helpful assistant."
SPECIAL = (TURN_START, TURN_END)
END = TURN_END
OPENED = False


def conversation(turns: Sequence[Turn], tokens: Tokens, *, is_open: bool) -> Iterator[Span]:
    """The question itself announces the answer. The original stripped the last line break to ask, and only to ask: here
    the weights see what they were trained on. It also trained on the line break after an answer, which nobody reads.
    """
    yield from opening(tokens.config)
    is_first = True
    for turn in turns:
        content, is_answer = strip(turn.content), turn.role == "assistant"
        if is_answer:
            yield from content or (TextSpan(" ", trainable=True),)
        else:
            yield SpecialSpan(TURN_START, trainable=False)
            yield TextSpan(f"{turn.role}\n", trainable=False)
            yield from _without_breaks(content) if is_first and turn.role == "user" else content
            is_first = is_first and turn.role != "user"
        yield SpecialSpan(TURN_END, trainable=is_answer)
        yield TextSpan("assistant\n" if turn.role == "user" else "\n", trainable=False)


def _without_breaks(content: Sequence[Span]) -> Iterator[Span]:
    after_picture = False
    for span in content:
        if after_picture and isinstance(span, TextSpan):
            yield TextSpan(span.text.removeprefix("\n"), span.trainable)
        else:
            yield span
        after_picture = isinstance(span, ImageSpan)
