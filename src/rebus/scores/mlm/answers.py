"""One answer of a model, and the columns that a batch of them makes."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rebus.scores.mlm.config import MlmConfig
from rebus.scores.mlm.digits import Path, expectation, hard_parse, spread_off_path


@dataclass(frozen=True)
class Answer:
    """text: what the model wrote; None where there is no answer, and `failure` says why.

    tree: the distributions of the next token (see digits.py); None where a server does not tell them.
    """

    text: str | None
    tree: dict[Path, dict[str, float]] | None = None
    failure: str = ""


@dataclass(frozen=True)
class Score:
    """expected: 0 to 100. hard: the number as MLM-Filter's authors read it. mass: the probability of all numbers. NaN
    where there is none. failure: why there is neither of the two, or empty."""

    expected: float
    hard: float
    mass: float
    failure: str


def score(answer: Answer, config: MlmConfig) -> Score:
    """Reads an answer. Nothing is made up: an answer without a number has no score."""
    nan = float("nan")
    if answer.text is None:
        return Score(nan, nan, nan, answer.failure)
    hard = hard_parse(answer.text)
    expected, mass = nan, nan
    if answer.tree is not None:
        expected, mass = expectation(answer.tree if config.is_exact else spread_off_path(answer.tree))
        expected = expected if mass >= config.min_mass else nan
    failure = "no number in the answer" if hard is None and np.isnan(expected) else ""
    return Score(expected, nan if hard is None else float(hard), mass, failure)


def columns(rows: Sequence[Sequence[Answer]], config: MlmConfig) -> dict[str, np.ndarray]:
    """rows: of each sample its answers in the order of `config.metrics`. Returns columns [len(rows)]: of each metric
    its expectation, `_hard`, `_mass` (float32) and `_raw` (text), and one `failure` for the sample."""
    made: dict[str, np.ndarray] = {}
    scores = [[score(answer, config) for answer in row] for row in rows]
    for place, metric in enumerate(config.metrics):
        made[metric] = np.array([row[place].expected for row in scores], np.float32)
        made[f"{metric}_hard"] = np.array([row[place].hard for row in scores], np.float32)
        made[f"{metric}_mass"] = np.array([row[place].mass for row in scores], np.float32)
        made[f"{metric}_raw"] = _texts([row[place].text for row in rows])
    made["failure"] = _texts(["; ".join(_failures(row, config)) for row in scores])
    return made


def _failures(row: Sequence[Score], config: MlmConfig) -> list[str]:
    """The reasons of a sample, each with its metric, or alone where all metrics share it."""
    reasons = {one.failure for one in row}
    if len(reasons) == 1:
        return [reason for reason in reasons if reason]
    return [f"{metric}: {one.failure}" for metric, one in zip(config.metrics, row, strict=True) if one.failure]


def _texts(values: list[Any]) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def to_json(answer: Answer) -> str:
    tree = None if answer.tree is None else [[list(path), following] for path, following in answer.tree.items()]
    return json.dumps({"text": answer.text, "tree": tree})


def from_json(line: str) -> Answer:
    body = json.loads(line)
    tree = body["tree"]
    return Answer(body["text"], None if tree is None else {tuple(path): following for path, following in tree})
