"""One request on its way to its answer."""

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Answer:
    """ids: the new tokens, the one that ended the answer left out. finish_reason: `stop` where the model ended it or a
    stop string did, `length` where max_new_tokens or the model's own limit did. seconds: from the start of the prompt
    to the last token. string_probabilities: of the strings asked about, among themselves."""

    text: str
    ids: tuple[int, ...]
    finish_reason: FinishReason
    num_prompt_tokens: int
    num_new_tokens: int
    seconds: float
    string_probabilities: tuple[float, ...] = ()
