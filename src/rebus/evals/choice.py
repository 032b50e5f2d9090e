"""Multiple choice by likelihood: the candidates are the labels, and the model never sees them in its prompt."""

import math
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Protocol

from rebus.evals.answers import ChoiceAnswer, Control, Draw
from rebus.evals.config import ChoiceConfig
from rebus.evals.task import Question


class Judge(Protocol):
    """Whoever can say how likely a label is. picture: a uid, or None for a prompt without any picture."""

    def log_likelihoods(self, picture: str | None, labels: Sequence[str]) -> list[float]: ...

    def num_tokens(self, label: str) -> int: ...


@dataclass(frozen=True)
class Tables:
    """What hangs on the label alone: label -> nats. marginal: see `score`; none: without a picture."""

    marginal: Mapping[str, float]
    none: Mapping[str, float]


def score(log_likelihood: float, log_marginal: float, num_tokens: int, config: ChoiceConfig) -> float:
    """The scoring rule, the same for every control: pointwise mutual information of picture and label, in nats.

    log_likelihood: log p(label | picture), summed over its tokens. log_marginal: log p(label), the likelihood averaged
    over reference pictures. The difference says how much more likely this picture makes the label than pictures do in
    general, so that a label gains nothing by being common or short (Holtzman et al. 2021, "Surface form competition",
    section 3, with the marginal over pictures in place of a domain prompt).
    """
    difference = log_likelihood - log_marginal
    return difference / num_tokens if config.normalise == "mean" else difference


def describe_rule(config: ChoiceConfig) -> str:
    """The scoring rule in words, for results.json."""
    kind = "sum" if config.normalise == "sum" else "mean per token"
    calibration = (
        f", minus the log of the label's likelihood averaged over {config.num_references} held-out pictures drawn by "
        "the seed (pointwise mutual information)"
        if config.num_references
        else ""
    )
    return (
        f"highest of {config.num_choices} labels by log-likelihood given prompt and picture ({kind} over its tokens)"
        f"{calibration}; equal scores: the first in a seeded random order; the same rule for all controls"
    )


def choose(candidates: Sequence[str], scores: Sequence[float]) -> str:
    """The best candidate; of equal ones the first. Their order is random, so equal scores for all give chance."""
    return candidates[max(range(len(scores)), key=lambda number: scores[number])]


def make_tables(questions: Sequence[Question], judge: Judge, references: Sequence[str]) -> Tables:
    """Scores every label that is asked about under each reference picture (uids) and once without a picture."""
    labels = sorted(set().union(*(question.candidates for question in questions)))
    tables = [_table(judge, picture, labels) for picture in references]
    return Tables(
        {label: _log_mean_exp([table[label] for table in tables]) for label in labels}, _table(judge, None, labels)
    )


def _log_mean_exp(values: Sequence[float]) -> float:
    """Logarithm of the mean of exponentials; 0, which changes no score, of nothing."""
    if not values:
        return 0.0
    peak = max(values)
    return peak + math.log(sum(math.exp(value - peak) for value in values) / len(values))


def pictures_to_show(questions: Sequence[Question]) -> dict[str, list[tuple[Question, Control]]]:
    """uid of a picture -> the questions that it is shown for, as their own or as a wrong one."""
    shown: dict[str, list[tuple[Question, Control]]] = {question.item.uid: [] for question in questions}
    for question in questions:
        shown[question.item.uid].append((question, "right"))
    for question in questions:
        shown.setdefault(question.wrong.uid, []).append((question, "wrong"))
    return shown


def answer_choices(
    questions: Sequence[Question],
    judge: Judge,
    config: ChoiceConfig,
    done: Set[tuple[str, Control]],
    references: Sequence[str],
) -> Iterator[list[ChoiceAnswer]]:
    """Yields the answers, a picture at a time, and last those without a picture. references: uids.

    A picture's labels form the same batches whether or not some of its answers are in `done` already, so a resumed
    evaluation gives the same numbers to the last bit; a picture that is all done is not shown again.
    """
    tables = make_tables(questions, judge, references)
    for picture, asked in pictures_to_show(questions).items():
        if all((question.item.uid, control) in done for question, control in asked):
            yield []
            continue
        labels = sorted(set().union(*(question.candidates for question, _ in asked)))
        likelihoods = _table(judge, picture, labels)
        yield [_answer(question, control, picture, likelihoods, tables, judge, config) for question, control in asked]
    yield [_answer(question, "none", "", tables.none, tables, judge, config) for question in questions]


def _table(judge: Judge, picture: str | None, labels: Sequence[str]) -> dict[str, float]:
    return dict(zip(labels, judge.log_likelihoods(picture, labels), strict=True))


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
            score(value, tables.marginal[label], judge.num_tokens(label), config)
            for label, value in zip(candidates, raw, strict=True)
        )
        draws.append(Draw(candidates, raw, scores, choose(candidates, scores)))
    item = question.item
    return ChoiceAnswer(item.uid, item.key, item.label, control, picture, tuple(draws))
