"""The choice itself, with judges whose answers are known."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebus.evals.answers import ChoiceAnswer
from rebus.evals.choice import answer_choices, choose, describe_rule, make_tables, score
from rebus.evals.config import ChoiceConfig
from rebus.evals.task import Item, ask, reference_pictures
from rebus.records import Image, content_uid

ITEMS = [Item(content_uid(bytes([n])), f"{n:03d}", f"thing {n}", Image(1, 1, b"")) for n in range(60)]
LABELS = {item.uid: item.label for item in ITEMS}
CONFIG = ChoiceConfig()
REFERENCES = reference_pictures(ITEMS, 6, 0)


@dataclass
class FakeJudge:
    """Knows pictures with a certain skill; `calls` keeps what it was asked."""

    skill: float = 0.0
    calls: list[tuple[str | None, tuple[str, ...]]] = field(default_factory=list)

    def log_likelihoods(self, picture: str | None, labels: Sequence[str]) -> list[float]:
        self.calls.append((picture, tuple(labels)))
        known = LABELS.get(picture) if picture else None
        return [-10.0 + self.skill * (label == known) for label in labels]

    def num_tokens(self, label: str) -> int:
        return len(label)


def answers_of(judge: FakeJudge, seed: int = 0, num_draws: int = 1, done=frozenset()) -> list[ChoiceAnswer]:
    questions = ask(ITEMS, num_choices=4, num_draws=num_draws, seed=seed)
    return [answer for group in answer_choices(questions, judge, CONFIG, done, REFERENCES) for answer in group]


def accuracy(answers: list[ChoiceAnswer], control: str) -> float:
    shares = [answer.share_correct for answer in answers if answer.control == control]
    assert len(shares) == len(ITEMS)
    return sum(shares) / len(shares)


def test_an_oracle_gets_all_with_the_right_picture_and_chance_without():
    answers = answers_of(FakeJudge(skill=5.0), num_draws=20)
    assert accuracy(answers, "right") == 1.0
    assert accuracy(answers, "none") == pytest.approx(0.25, abs=0.06)
    assert accuracy(answers, "wrong") < 0.25  # its picture's own label is among the candidates now and then


def test_equal_scores_give_chance():
    shares = [accuracy(answers_of(FakeJudge(), seed), c) for seed in range(8) for c in ("right", "wrong", "none")]
    assert sum(shares) / len(shares) == pytest.approx(0.25, abs=0.04)  # 1,440 choices: standard deviation 0.011


def test_the_wrong_picture_is_never_the_items_own():
    for answer in answers_of(FakeJudge()):
        assert (answer.picture == answer.uid) == (answer.control == "right")
        assert (answer.picture == "") == (answer.control == "none")


def test_a_picture_is_shown_once_and_label_tables_are_made_once():
    judge = FakeJudge()
    answers_of(judge)
    shown = [picture for picture, labels in judge.calls if len(labels) < len(LABELS)]
    assert sorted(shown) == sorted(LABELS)
    tables = [picture for picture, labels in judge.calls if sorted(labels) == sorted(LABELS.values())]
    assert tables == [*REFERENCES, None]
    assert len(set(REFERENCES)) == 6


def test_the_marginal_is_the_likelihood_averaged_over_references():
    class Known(FakeJudge):
        def log_likelihoods(self, picture: str | None, labels: Sequence[str]) -> list[float]:
            return [math.log(0.5) if picture == "a" else math.log(0.1)] * len(labels)

    questions = ask(ITEMS, num_choices=4, num_draws=1, seed=0)
    tables = make_tables(questions, Known(), ["a", "b"])
    assert list(tables.marginal.values()) == pytest.approx([math.log((0.5 + 0.1) / 2)] * len(LABELS))
    assert set(make_tables(questions, Known(), []).marginal.values()) == {0.0}


def test_resuming_asks_the_same_batches_and_skips_what_is_done():
    whole, resumed = FakeJudge(), FakeJudge()
    answers = answers_of(whole)
    first = answers[0]
    kept = answers_of(resumed, done={(answer.uid, answer.control) for answer in answers[:-61]} - {(first.uid, "right")})
    assert set(resumed.calls) < set(whole.calls)
    assert first in kept
    assert all(answer in answers for answer in kept)


@given(st.lists(st.floats(-50, 0), min_size=4, max_size=4), st.lists(st.floats(-50, 0), min_size=4, max_size=4))
def test_the_rule_is_what_it_says(raw: list[float], reference: list[float]):
    pmi = [score(a, b, 3, CONFIG) for a, b in zip(raw, reference, strict=True)]
    assert pmi == [a - b for a, b in zip(raw, reference, strict=True)]
    plain = ChoiceConfig(num_references=0, normalise="mean")
    assert score(raw[0], 0.0, 4, plain) == raw[0] / 4
    assert choose("abcd", pmi) == "abcd"[pmi.index(max(pmi))]


def test_the_rule_in_words_follows_the_settings():
    assert "averaged over 16 held-out pictures" in describe_rule(CONFIG)
    assert "averaged" not in describe_rule(ChoiceConfig(num_references=0))
    assert "mean per token" in describe_rule(ChoiceConfig(normalise="mean"))


def test_calibration_takes_away_what_a_label_has_anyway():
    """A judge that loves short labels, and sees a little: uncalibrated it is fooled, calibrated it is right."""

    class Biased(FakeJudge):
        def log_likelihoods(self, picture: str | None, labels: Sequence[str]) -> list[float]:
            bias = {label: random.Random(label).uniform(-30, 0) for label in labels}
            return [v + bias[label] for v, label in zip(super().log_likelihoods(picture, labels), labels, strict=True)]

    questions = ask(ITEMS, num_choices=4, num_draws=1, seed=0)
    shares = {}
    for calibrate in (True, False):
        references = REFERENCES if calibrate else []
        groups = answer_choices(questions, Biased(skill=0.5), CONFIG, frozenset(), references)
        shares[calibrate] = accuracy([answer for group in groups for answer in group], "right")
    assert shares[True] == 1.0
    assert shares[False] < 0.6


def test_each_control_is_scored_under_its_own_picture():
    """A judge that answers with the picture's own number: every answer must hold that of the picture it names."""

    class Numbered(FakeJudge):
        def log_likelihoods(self, picture: str | None, labels: Sequence[str]) -> list[float]:
            numbers = {None: -1.0, **{uid: -3.0 - place for place, uid in enumerate(LABELS)}}
            return [numbers[picture]] * len(labels)

    judge = Numbered()
    questions = ask(ITEMS, num_choices=4, num_draws=1, seed=0)
    (marginal,) = judge.log_likelihoods(REFERENCES[0], ["any"])
    for group in answer_choices(questions, judge, CONFIG, frozenset(), REFERENCES[:1]):
        for answer in group:
            (expected,) = judge.log_likelihoods(answer.picture or None, [answer.label])
            assert answer.draws[0].log_likelihoods == (expected,) * 4
            assert answer.draws[0].scores == pytest.approx((expected - marginal,) * 4)
