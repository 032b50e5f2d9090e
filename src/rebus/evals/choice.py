"""Multiple choice by likelihood: the candidates are the labels, and the model never sees them in its prompt."""

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Final, Protocol

from rebus.evals.answers import ChoiceAnswer, Control, Draw
from rebus.evals.config import ChoiceConfig
from rebus.evals.task import Question

MEAN: Final = "mean"
"""Stands for a picture of nothing in particular: the mean of all held-out pictures' features."""

MAX_CANDIDATES = 32
"""Labels that are scored as one batch."""


class Judge(Protocol):
    """Whoever can say how likely a label is. picture: a uid, MEAN, or None for a prompt without any picture."""

    def log_likelihoods(self, picture: str | None, labels: Sequence[str]) -> list[float]: ...

    def num_tokens(self, label: str) -> int: ...


@dataclass(frozen=True)
class Tables:
    """Log-likelihoods that hang on the label alone: label -> nats."""

    mean: Mapping[str, float]
    none: Mapping[str, float]


def score(log_likelihood: float, reference: float, num_tokens: int, config: ChoiceConfig) -> float:
    """The scoring rule, the same for every control.

    log_likelihood: of the label, summed over its tokens, in nats. reference: the same under the mean picture. The
    difference says how much more likely the picture makes the label (domain-conditional PMI: Holtzman et al. 2021,
    "Surface form competition", section 3; contextual calibration: Zhao et al. 2021, section 4), so that a label gains
    nothing by being common or short.
    """
    calibrated = log_likelihood - reference if config.calibrate else log_likelihood
    return calibrated / num_tokens if config.normalise == "mean" else calibrated


def describe_rule(config: ChoiceConfig) -> str:
    """The scoring rule in words, for results.json."""
    kind = "sum" if config.normalise == "sum" else "mean per token"
    calibration = (
        " minus the log-likelihood of the same label under the same prompt with the mean visual features of all "
        "held-out pictures"
        if config.calibrate
        else ""
    )
    return (
        f"highest of {config.num_choices} labels by log-likelihood given prompt and picture ({kind} over its tokens)"
        f"{calibration}; equal scores: the first in a seeded random order; the same rule for all controls"
    )


def choose(candidates: Sequence[str], scores: Sequence[float]) -> str:
    """The best candidate; of equal ones the first. Their order is random, so equal scores for all give chance."""
    return candidates[max(range(len(scores)), key=lambda number: scores[number])]


def make_tables(questions: Sequence[Question], judge: Judge) -> Tables:
    """Scores every label that is asked about once under the mean picture and once without a picture."""
    labels = sorted(set().union(*(question.candidates for question in questions)))
    return Tables(_table(judge, MEAN, labels), _table(judge, None, labels))


def pictures_to_show(questions: Sequence[Question]) -> dict[str, list[tuple[Question, Control]]]:
    """uid of a picture -> the questions that it is shown for, as their own or as a wrong one."""
    shown: dict[str, list[tuple[Question, Control]]] = {question.item.uid: [] for question in questions}
    for question in questions:
        shown[question.item.uid].append((question, "right"))
    for question in questions:
        shown.setdefault(question.wrong.uid, []).append((question, "wrong"))
    return shown


def answer_choices(
    questions: Sequence[Question], judge: Judge, config: ChoiceConfig, done: Set[tuple[str, Control]]
) -> Iterator[list[ChoiceAnswer]]:
    """Yields the answers, a picture at a time, and last those without a picture.

    A picture's labels form the same batches whether or not some of its answers are in `done` already, so a resumed
    evaluation gives the same numbers to the last bit; a picture that is all done is not shown again.
    """
    tables = make_tables(questions, judge)
    for picture, asked in pictures_to_show(questions).items():
        if all((question.item.uid, control) in done for question, control in asked):
            yield []
            continue
        labels = sorted(set().union(*(question.candidates for question, _ in asked)))
        likelihoods = _table(judge, picture, labels)
        yield [_answer(question, control, picture, likelihoods, tables, judge, config) for question, control in asked]
    yield [_answer(question, "none", "", tables.none, tables, judge, config) for question in questions]


def _table(judge: Judge, picture: str | None, labels: Sequence[str]) -> dict[str, float]:
    chunks = [labels[start : start + MAX_CANDIDATES] for start in range(0, len(labels), MAX_CANDIDATES)]
    values = [value for chunk in chunks for value in judge.log_likelihoods(picture, chunk)]
    return dict(zip(labels, values, strict=True))


def _answer(
    question: Question,
    control: Control,
    picture: str,
    likelihoods: Mapping[str, float],
    tables: Tables,
    judge: Judge,
    config: ChoiceConfig,
) -> ChoiceAnswer:
    draws = []
    for candidates in question.draws:
        raw = tuple(likelihoods[label] for label in candidates)
        scores = tuple(
            score(value, tables.mean[label], judge.num_tokens(label), config)
            for label, value in zip(candidates, raw, strict=True)
        )
        draws.append(Draw(candidates, raw, scores, choose(candidates, scores)))
    item = question.item
    return ChoiceAnswer(item.uid, item.key, item.label, control, picture, tuple(draws))
