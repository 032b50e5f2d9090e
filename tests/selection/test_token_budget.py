"""Budgets to the token: never above, never with room for another sample, shares met to within one sample."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_pools import kept_rows_of, make_view

from rebus.config import check_recipe
from rebus.errors import ConfigError
from rebus.selection.rules.budget import Rule, apply
from rebus.selection.shares import fill_shares, take_within

groups_of_costs = st.lists(st.lists(st.integers(1, 50), max_size=12), min_size=1, max_size=5)


@given(groups_of_costs, st.data())
def test_a_budget_is_met_to_within_one_sample(costs, data):
    weights = np.array([data.draw(st.floats(0.01, 100)) for _ in costs])
    budget = data.draw(st.integers(1, 1500))
    counts = take_within([np.array(cost, dtype=np.int64) for cost in costs], weights, budget)
    taken = [sum(cost[:count]) for cost, count in zip(costs, counts, strict=True)]
    assert sum(taken) <= budget
    for cost, count in zip(costs, counts, strict=True):
        assert count == len(cost) or sum(taken) + cost[count] > budget


@given(groups_of_costs, st.data())
def test_no_group_falls_a_sample_short_of_its_share(costs, data):
    weights = np.array([data.draw(st.floats(0.1, 10)) for _ in costs])
    budget = data.draw(st.integers(1, 1500))
    totals = np.array([sum(cost) for cost in costs])
    shares = fill_shares(totals, weights, budget)
    counts = take_within([np.array(cost, dtype=np.int64) for cost in costs], weights, budget)
    for cost, count, share in zip(costs, counts, shares, strict=True):
        assert count == len(cost) or sum(cost[: count + 1]) > np.floor(share)


@given(st.lists(st.tuples(st.integers(0, 100), st.floats(0.1, 10)), min_size=1, max_size=6), st.integers(1, 400))
def test_shares_fill_small_groups_and_go_by_weight_among_the_rest(groups, budget):
    totals, weights = np.array([t for t, _ in groups]), np.array([w for _, w in groups])
    shares = fill_shares(totals, weights, budget)
    assert (shares <= totals + 1e-9).all()
    assert shares.sum() == pytest.approx(min(budget, totals.sum()))
    level = (shares / weights).max()
    for share, total, weight in zip(shares, totals, weights, strict=True):
        assert share == pytest.approx(min(total, weight * level))  # water stands equally high where there is room


def test_shares_by_hand():
    # 100 at 1:1:2 would be 25, 25, 50. The first has 10: of the 90 left, 30 and 60.
    assert fill_shares(np.array([10, 100, 100]), np.array([1.0, 1.0, 2.0]), 100).tolist() == [10, 30, 60]


def test_the_best_are_taken_until_the_share_is_met():
    view = make_view(
        6,
        uids=[5, 4, 3, 2, 1, 0],
        stats__language=["en", "en", "en", "de", "de", None],
        text_chars=[40, 40, 40, 20, 20, 40],
        z=[1.0, 3.0, 2.0, None, 0.0, 9.0],
    )
    shares = {"en": 2, "de": 1}
    rule = Rule(tokens=64, tokens_per_image=10, by="stats.language", shares=shares, prefer="z")
    # A sample of `en` is 40 / 4 + 10 = 20 tokens, of `de` 15. 64 at 2:1 is 42.7 and 21.3: two and one; 9 are left.
    answer = apply(rule, view)
    assert kept_rows_of(answer) == [1, 2, 4]
    assert answer.unscored.tolist() == [False] * 5 + [True]
    assert answer.counts == {"tokens of en": 40, "tokens of de": 15, "samples of no group": 0}
    more = apply(rule.model_copy(update={"tokens": 70.0}), view)
    assert kept_rows_of(more) == [1, 2, 3, 4]  # 15 are left: a second of `de`


def test_tokens_are_counted_where_a_column_has_them():
    view = make_view(3, tokens__num=[7.0, 5.0, None], num_images=[1, 2, 1])
    answer = apply(Rule(tokens=11, tokens_per_image=3, text_tokens="tokens.num"), view)
    assert kept_rows_of(answer) == [0]  # 7 + 3 = 10; 5 + 6 does not fit beside it
    assert answer.unscored.tolist() == [False, False, True]


def test_shards_and_folders_are_groups():
    tars = ("a/cc3m-0.tar", "b/cc3m-1.tar", "b/web-0.tar")
    view = make_view(6, shards=[0, 0, 1, 1, 2, 2], tars=tars)
    by_shard = apply(Rule(tokens=40, tokens_per_image=0, shares={"cc3m-*": 3, "web-*": 1}), view)
    assert kept_rows_of(by_shard) == [0, 1, 2, 4]
    by_folder = apply(Rule(tokens=40, tokens_per_image=0, by="folder", shares={"a": 1, "b": 1}), view)
    assert kept_rows_of(by_folder) == [0, 1, 2, 3]
    one = apply(Rule(tokens=40, tokens_per_image=0, by="folder", shares={"b": 1}), view)
    assert kept_rows_of(one) == [2, 3, 4, 5]
    assert one.counts["samples of no group"] == 2


def test_numbers_are_groups_too():
    view = make_view(4, clusters__label=[0.0, 0.0, 7.0, 3.0])
    answer = apply(Rule(tokens=20, tokens_per_image=0, by="clusters.label", shares={"0": 1, "7": 1}), view)
    assert kept_rows_of(answer) == [0, 2]


def test_a_share_of_nothing_is_refused_by_name():
    view = make_view(2, stats__language=["en", "de"])
    with pytest.raises(ConfigError, match="did you mean 'en'"):
        apply(Rule(tokens=9, tokens_per_image=0, by="stats.language", shares={"enn": 1}), view)
    with pytest.raises(ConfigError, match="cc3m"):
        apply(Rule(tokens=9, tokens_per_image=0, shares={"cc3m-*": 1}), view)


@pytest.mark.parametrize(
    "options",
    [
        {"tokens": 5},
        {"tokens": 0, "tokens_per_image": 1},
        {"tokens": 5, "tokens_per_image": 1, "shares": {"a": 0}},
        {"tokens": 5, "tokens_per_image": 1, "by": "folder"},
        {"tokens": 5, "tokens_per_image": 1, "text_tokens": "x", "chars_per_token": 3},
    ],
)
def test_budgets_that_say_nothing_clear_are_refused(options):
    with pytest.raises(ConfigError):
        check_recipe(Rule, options, "test")


def test_a_budget_may_be_written_as_people_do():
    assert check_recipe(Rule, {"tokens": "5e9", "tokens_per_image": 144}, "test").tokens == 5e9


@settings(max_examples=25)
@given(st.lists(st.integers(1, 400), min_size=1, max_size=30), st.integers(1, 2000), st.integers(0, 2**32))
def test_the_order_of_the_shards_decides_nothing(chars, budget, seed):
    rule = Rule(tokens=budget, tokens_per_image=5)
    order = np.random.default_rng(seed).permutation(len(chars))

    def stay(rows) -> set[int]:
        view = make_view(len(rows), uids=rows, text_chars=[chars[row] for row in rows])
        return set(rows[apply(rule, view).kept].tolist())

    assert stay(np.arange(len(chars))) == stay(order)
