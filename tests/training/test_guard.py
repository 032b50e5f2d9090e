"""The guard skips what is no step, counts it, stops in time, and judges alike after a resume."""

import json
import math
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebus.batches.feed import open_feed
from rebus.errors import DataError
from rebus.training.config import GuardConfig
from rebus.training.guard import NUM_BEFORE_JUDGING, Guard, list_skipped

NORMS = st.lists(st.floats(0, 1e6) | st.sampled_from([math.nan, math.inf]), max_size=60)


def judged(config: GuardConfig, norms: list[float]) -> list[bool]:
    guard = Guard(config)
    return [guard.judge(1.0, norm) is None for norm in norms]


@pytest.mark.parametrize("loss", [math.nan, math.inf, 1.0])
@pytest.mark.parametrize("norm", [math.nan, math.inf, -math.inf, 1.0])
def test_what_is_not_finite_is_never_taken(loss, norm):
    reason = Guard(GuardConfig()).judge(loss, norm)
    assert (reason is None) == (math.isfinite(loss) and math.isfinite(norm))


def test_a_spike_is_skipped_only_against_enough_norms():
    config = GuardConfig(spike=3.0)
    assert judged(config, [1.0] * (NUM_BEFORE_JUDGING - 1) + [100.0]) == [True] * NUM_BEFORE_JUDGING
    assert judged(config, [1.0] * NUM_BEFORE_JUDGING + [3.0, 3.1, 1.0])[NUM_BEFORE_JUDGING:] == [True, False, True]
    guard = Guard(config)
    for _ in range(NUM_BEFORE_JUDGING):
        guard.judge(1.0, 0.5)
    assert guard.judge(1.0, 5.0) == "gradient norm 5 is 10.0 times the median of late, 0.5"
    assert judged(GuardConfig(), [1.0] * 20 + [1e9])[-1], "without `spike` every finite step is taken"


def test_norms_of_nothing_make_no_spike():
    assert all(judged(GuardConfig(spike=2.0), [0.0] * 20 + [1.0]))


@given(NORMS, st.integers(8, 16), st.floats(1.01, 10))
def test_it_judges_by_the_median_of_the_last_taken(norms, window, spike):
    taken: list[float] = []
    for norm, was_taken in zip(norms, judged(GuardConfig(spike=spike, window=window), norms), strict=True):
        last = taken[-window:]
        is_spike = len(last) >= NUM_BEFORE_JUDGING and median(last) > 0 and norm > spike * median(last)
        assert was_taken == (math.isfinite(norm) and not is_spike)
        taken += [norm] if was_taken else []


@given(NORMS, st.integers(0, 60))
def test_resumed_anywhere_it_judges_alike(norms, cut):
    config = GuardConfig(spike=2.0, window=8)
    whole, first = Guard(config), Guard(config)
    expected = [whole.judge(1.0, norm) for norm in norms]
    found = [first.judge(1.0, norm) for norm in norms[:cut]]
    second = Guard(config, json.loads(json.dumps(first.state, allow_nan=False)))
    found += [second.judge(1.0, norm) for norm in norms[cut:]]
    assert found == expected
    assert second.state == whole.state


def test_too_many_in_a_row_stop_the_run(tmp_path):
    guard = Guard(GuardConfig(max_skipped=3))
    for norm in [math.nan, math.nan, 1.0, math.nan, math.nan]:
        guard.judge(1.0, norm)
        guard.stop_if_hopeless("so", tmp_path)
    assert (guard.num_skipped, guard.num_in_a_row) == (4, 2)
    reason = guard.judge(1.0, math.nan)
    with pytest.raises(DataError, match=r"3 steps in a row .* gradient norm nan: not finite.*learning rates"):
        guard.stop_if_hopeless(reason or "", tmp_path / "skipped.jsonl")


def test_the_documents_of_a_skipped_step_are_listed_once(tiny_way, tmp_path):
    feed, path = open_feed(tiny_way.plan), tmp_path / "skipped.jsonl"
    list_skipped(path, 3, "nan", [0], feed)
    list_skipped(path, 5, "nan", [1, 2], feed)
    path.write_text(path.read_text() + '{"step": 7, "uid')  # a kill
    list_skipped(path, 3, "nan", [0], feed)  # resumed before all of them
    list_skipped(path, 5, "nan", [1, 2], feed)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["step"], row["packs"]) for row in rows] == [(3, [0]), (5, [1, 2])]
    assert rows[1]["uids"] == [one.uid for pack in (1, 2) for one in feed.plan.documents(pack)]
