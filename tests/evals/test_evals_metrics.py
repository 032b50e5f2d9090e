"""Intervals and agreement against values worked out elsewhere."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebus.evals.metrics import exact_match, sign_test, wilson, word_overlap, words


@pytest.mark.parametrize(
    ("num_right", "num_trials", "low", "high"),
    [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662)],
)
def test_wilson_equals_published_values(num_right: int, num_trials: int, low: float, high: float):
    """The last row is Newcombe's (1998) example of 81 in 263."""
    assert wilson(num_right / num_trials, num_trials) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share_inside_the_unit_interval(counts: tuple[int, int]):
    num_right, num_trials = counts
    low, high = wilson(num_right / num_trials, num_trials)
    assert 0 <= low <= num_right / num_trials + 1e-12
    assert num_right / num_trials - 1e-12 <= high <= 1


@pytest.mark.parametrize(("share", "num_trials"), [(0.5, 0), (1.5, 10), (-0.1, 10)])
def test_wilson_refuses_what_is_no_share(share: float, num_trials: int):
    with pytest.raises(ValueError, match="no interval"):
        wilson(share, num_trials)


def test_sign_test_is_mcnemars_exact_test():
    """One win fewer each way: 2 of 10 discordant pairs give 2 * (1 + 10 + 45) / 1024."""
    firsts = [1] * 8 + [0] * 2 + [1] * 5
    seconds = [0] * 8 + [1] * 2 + [1] * 5
    assert sign_test(firsts, seconds) == pytest.approx(112 / 1024)
    assert sign_test([1, 0], [1, 0]) == 1.0
    assert sign_test([1, 0], [0, 1]) == 1.0


def test_words_ignore_case_and_punctuation():
    assert words("It's a Red-Apple.") == ["it", "s", "a", "red", "apple"]
    assert exact_match(" Red apple.", "red apple")
    assert not exact_match("apple red", "red apple")


@pytest.mark.parametrize(
    ("answer", "label", "overlap"),
    [
        ("red apple", "red apple", 1.0),
        ("a red apple", "red apple", 0.8),
        ("apple apple", "apple", 2 / 3),
        ("", "apple", 0.0),
        ("pear", "apple", 0.0),
    ],
)
def test_word_overlap_is_f1(answer: str, label: str, overlap: float):
    assert word_overlap(answer, label) == pytest.approx(overlap)
