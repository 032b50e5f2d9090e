"""What a server sent back -> an answer, or why there is none."""

import json
import math
from typing import Any

from rebus.scores.mlm.answers import Answer
from rebus.scores.mlm.digits import END, Path, is_way_to_number


class NoAnswerError(Exception):
    """A reply that holds no answer; the message is the reason as the table of reasons counts it."""


def read_reply(body: bytes) -> Answer:
    """Reads the body of a chat completion. Raises: NoAnswerError."""
    try:
        reply = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise NoAnswerError("malformed JSON") from error
    choices = reply.get("choices") if isinstance(reply, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise NoAnswerError("no choices in the reply")
    message = choices[0].get("message")
    text = message.get("content") if isinstance(message, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise NoAnswerError("empty answer")
    steps = choices[0].get("logprobs")
    steps = steps.get("content") if isinstance(steps, dict) else None
    if not steps:
        return Answer(text)
    return Answer(text, _tree(steps, is_over=choices[0].get("finish_reason") == "stop"))


def _tree(steps: Any, is_over: bool) -> dict[Path, dict[str, float]]:
    """The distributions along the answer, as far as it may be a number. is_over: the model itself ended it."""
    tree: dict[Path, dict[str, float]] = {}
    path: Path = ()
    try:
        for step in steps:
            tree[path] = _following(step)
            path = (*path, str(step["token"]))
            if not is_way_to_number(path):
                return tree
    except (KeyError, TypeError, ValueError) as error:
        raise NoAnswerError("malformed logprobs") from error
    if is_over:
        tree[path] = {END: 1.0}
    return tree


def _following(step: dict[str, Any]) -> dict[str, float]:
    """Token -> probability of one step: the alternatives, and the token that was taken where it is not among them."""
    taken = str(step["token"])
    following: dict[str, float] = {}
    for one in step.get("top_logprobs") or []:
        probability = _probability(one["logprob"])
        following[str(one["token"])] = following.get(str(one["token"]), 0.0) + probability
    following.setdefault(taken, _probability(step["logprob"]))
    if sum(following.values()) > 1.01:
        raise ValueError("probabilities above 1")
    return following


def _probability(logprob: Any) -> float:
    value = float(logprob)
    if math.isnan(value) or value > 0.01:
        raise ValueError(f"{value} is no logarithm of a probability")
    return math.exp(min(value, 0.0))
