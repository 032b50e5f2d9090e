"""The expected number against an enumeration of all that a model may write; the hard reading; prompts and options."""

import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebus.config import check_recipe
from rebus.errors import ConfigError
from rebus.scores.mlm.answers import Answer, columns, from_json, score, to_json
from rebus.scores.mlm.config import MlmConfig
from rebus.scores.mlm.digits import (
    END,
    expectation,
    hard_parse,
    number_probabilities,
    paths_to_ask,
    spread_off_path,
)
from rebus.scores.mlm.prompts import CRITERIA, fill, read_prompts

DIGITS = [str(digit) for digit in range(10)]
TOGETHER = [*DIGITS, "10", "85", "100", " 8", "85.", "7\n"]
"""A vocabulary with longer tokens: numbers in one, white space in front, ends inside."""


def enumerated(following, vocabulary: list[str]) -> np.ndarray:
    """Everything of up to three tokens that a model may write, its probability, and the number that it begins with.
    following(path) -> {token: probability}, or None where that was not asked."""
    found = np.zeros(101)
    for length in (1, 2, 3):
        for path in itertools.product(vocabulary, repeat=length):
            text = "".join(path)
            match = re.fullmatch(r" ?(0|[1-9][0-9]?|100)([^0-9].*)?", text, re.DOTALL)
            if match is None or any(re.search(r"[0-9][^0-9]", token) for token in path[:-1]):
                continue
            if any(token.startswith(" ") for token in path[1:]):
                continue
            mass = 1.0
            for place, token in enumerate(path):
                known = following(path[:place])
                mass *= known[token] if known is not None else 0.0
            can_grow = match[1] != "0" and (len(match[1]) == 1 or match[1] == "10")
            if match[2] is None:
                after = following(path)
                if after is not None:
                    mass *= sum(p for token, p in after.items() if token not in vocabulary or not token[0].isdigit())
                elif can_grow:
                    mass = 0.0
            found[int(match[1])] += mass
    return found


def distributions(vocabulary: list[str]) -> st.SearchStrategy:
    weights = st.lists(st.floats(0, 1), min_size=len(vocabulary) + 1, max_size=len(vocabulary) + 1)
    usable = weights.filter(lambda values: sum(values) > 0.1)
    return usable.map(
        lambda values: dict(zip([*vocabulary, END], (np.array(values) / sum(values)).tolist(), strict=True))
    )


@pytest.mark.parametrize("vocabulary", [DIGITS, TOGETHER])
@given(data=st.data())
def test_the_tree_equals_an_enumeration(vocabulary, data):
    asked = paths_to_ask(vocabulary)
    some = data.draw(st.lists(distributions(vocabulary), min_size=4, max_size=4))
    tree = {path: some[number % 4] for number, path in enumerate(asked)}
    tree[("8", "5")] = some[0]  # on the way of a greedy answer: known too
    found = number_probabilities(tree)
    np.testing.assert_allclose(found, enumerated(tree.get, vocabulary), atol=1e-12)
    assert found.sum() <= 1 + 1e-9
    expected, mass = expectation(tree)
    assert mass == pytest.approx(found.sum())
    if mass > 0:
        assert expected == pytest.approx(sum(n * p for n, p in enumerate(found)) / mass)
        assert 0 <= expected <= 100


def test_one_token_a_digit_asks_eleven_prefixes_besides_the_prompt():
    assert paths_to_ask(DIGITS) == [(), *((digit,) for digit in DIGITS[1:]), ("1", "0")]
    asked = paths_to_ask(TOGETHER)
    assert {("10",), ("1", "0"), (" 8",)} <= set(asked)
    assert ("85",) not in asked
    assert ("7\n",) not in asked


def certain(*tokens: str) -> dict:
    """The tree of a model that is sure of its answer."""
    return {tokens[:place]: {token: 1.0} for place, token in enumerate(tokens)}


@pytest.mark.parametrize(
    ("tokens", "number"),
    [
        (("1", "0", "0", "\n"), 100),
        (("100", "\n"), 100),
        (("1", "0", "\n"), 10),
        (("8", "5"), 85),
        (("85.",), 85),
        (("0", "\n"), 0),
        ((" ", "4", "2", "\n"), 42),
        ((" 4", "2", "\n"), 42),
        (("85", "/", "100"), 85),
        (("8", "5", "0", "\n"), None),
        (("1", "0", "1", "\n"), None),
        (("1", "0", "0", "0"), None),
        (("Score", ":", " ", "85"), None),
        (("-", "5"), None),
        (("5",), None),  # cut off: it may have been 50
        (("1", "0"), None),
        ((), None),
    ],
)
def test_a_sure_answer(tokens, number):
    expected, mass = expectation(certain(*tokens))
    assert (expected, mass) == (number, 1.0) if number is not None else np.isnan(expected) and mass == 0


def test_a_hundred_is_told_from_ten():
    tree = {(): {"1": 1.0}, ("1",): {"0": 1.0}, ("1", "0"): {"0": 0.75, "\n": 0.25}}
    assert expectation(tree) == (pytest.approx(0.75 * 100 + 0.25 * 10), pytest.approx(1.0))


def test_off_the_path_a_first_digit_counts_as_the_middle_of_its_ten():
    tree = {(): {"8": 0.6, "9": 0.3, "1": 0.1}, ("8",): {"5": 1.0}, ("8", "5"): {"\n": 1.0}}
    expected, mass = expectation(tree)
    assert (expected, mass) == (pytest.approx(85), pytest.approx(0.6))
    expected, mass = expectation(spread_off_path(tree))
    assert (expected, mass) == (pytest.approx((0.6 * 85 + 0.3 * 94.5) / 0.9), pytest.approx(0.9))
    whole = {(): {"85": 0.5, "90": 0.4, "9": 0.1}}
    assert spread_off_path(whole) == whole, "where 90 is one token, a lone 9 is no 90"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *[("85", 85), (" 85;\nbecause", 85), ("100", 100), ("0,", 0), ("85.", None), ("85/100", None), ("850", None)],
        *[("Score: 85", None), ("", None), ("\n", None), ("-5", None), ("8 5", None), ("٣", None), ("9" * 5000, None)],
    ],
)
def test_the_hard_reading(text, number):
    assert hard_parse(text) == number


@given(st.text(max_size=12))
def test_the_hard_reading_never_fails(text):
    number = hard_parse(text)
    assert number is None or 0 <= number <= 100


OPTIONS = MlmConfig(model="folder", metrics=("caption_text_quality", "semantic_understanding"))


def test_columns_of_good_and_bad_answers():
    sure = Answer("85\n", certain("8", "5", "\n"))
    chatty = Answer("Score: 85", {(): {"Score": 0.99, "8": 0.001}})
    lost = Answer(None, failure="HTTP 500")
    plain = Answer("100", None)
    made = columns([[sure, chatty], [lost, lost], [plain, sure]], OPTIONS)
    nan = np.nan
    np.testing.assert_equal(made["caption_text_quality"], np.array([85, nan, nan], np.float32))
    np.testing.assert_equal(made["caption_text_quality_hard"], np.array([85, nan, 100], np.float32))
    np.testing.assert_equal(made["semantic_understanding"], np.array([nan, nan, 85], np.float32))
    assert made["semantic_understanding_raw"].tolist() == ["Score: 85", None, "85\n"]
    assert made["failure"].tolist() == ["semantic_understanding: no number in the answer", "HTTP 500", ""]


def test_a_number_of_little_probability_is_no_score():
    answer = Answer("Well", {(): {"Well": 0.9, "7\n": 0.08}})
    assert np.isnan(score(answer, OPTIONS).expected)
    assert score(answer, OPTIONS.model_copy(update={"min_mass": 0.05})).expected == pytest.approx(7)


@given(st.dictionaries(st.lists(st.text(max_size=3), max_size=3).map(tuple), distributions(DIGITS), max_size=3))
def test_answers_travel_as_json(tree):
    answer = Answer("8\n", tree)
    assert from_json(to_json(answer)) == answer
    assert from_json(to_json(Answer("8"))) == Answer("8")


def test_prompts_hold_the_caption_as_it_is(tmp_path):
    own = tmp_path / "own.txt"
    own.write_text("Rate this: {caption}")
    prompts = read_prompts(tuple(CRITERIA), {"semantic_understanding": own})
    assert list(prompts) == list(CRITERIA)
    for metric, prompt in prompts.items():
        filled = fill(prompt, " a {criteria} of {caption} ")
        assert filled.count("a {criteria} of {caption}") == 1
        assert (CRITERIA[metric] in filled) == (metric != "semantic_understanding")
    assert fill(prompts["semantic_understanding"], "dogs") == "Rate this: dogs"
    own.write_text("Rate this.")
    with pytest.raises(ConfigError, match="nowhere where the caption goes"):
        read_prompts(["semantic_understanding"], {"semantic_understanding": own})


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({}, "either `model: FOLDER` or"),
        ({"model": "m", "endpoint": {"url": "http://h/v1", "model": "m"}}, "either `model: FOLDER` or"),
        ({"endpoint": {"url": "http://h/v1", "model": "m"}}, "needs `cache: FILE`"),
        ({"endpoint": {"url": "http://h/v1", "model": "m"}, "cache": "c", "expectation": "exact"}, "along"),
        ({"model": "m", "metrics": ["semantic_understanding"] * 2}, "named twice"),
        ({"model": "m", "metrics": ["beauty"]}, "beauty"),
        ({"endpoint": {"url": "http://h/v1", "model": "m", "api_key_env": "sk-live.1"}, "cache": "c"}, "api_key_env"),
    ],
)
def test_options_that_do_not_fit(tree, message):
    with pytest.raises(ConfigError, match=message):
        check_recipe(MlmConfig, tree, "scorers.mlm_filter")
