"""The rules `column` and `where` against cases worked out by hand, ties and missing values included."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_pools import kept_rows_of, make_view

from rebus.config import check_recipe, load_recipe
from rebus.errors import ConfigError
from rebus.selection.config import SelectionRecipe
from rebus.selection.examples import NUM_EXAMPLES, near_the_boundary
from rebus.selection.pool import Column
from rebus.selection.rules import open_rule
from rebus.selection.sift import sift
from rebus.selection.view import Kept

WORDS = ["en", "de", None, "", "en"]


def apply(kind: str, view, **options) -> Kept:
    rule = open_rule("r", kind, options)
    return rule.module.apply(rule.options, view)


def kept(rule: dict, values, **view) -> list[int]:
    return kept_rows_of(apply("column", make_view(len(values), c=values, **view), column="c", **rule))


@pytest.mark.parametrize(
    ("rule", "values", "wanted"),
    [
        ({"min": 2}, [1, 2, 3], [1, 2]),
        ({"max": 2}, [1, 2, 3], [0, 1]),
        ({"min": 0}, [-1, 0, 1], [1, 2]),  # a threshold of 0 is a threshold
        ({"keep_fraction": 0.5}, [1, 4, 2, 3], [1, 3]),
        ({"keep_fraction": 0.5}, [7, 7, 7, 7], [0, 1]),
        ({"keep_fraction": 0.5}, [7, 7, 9], [0, 2]),  # 1.5 rounds up to 2
        ({"drop_fraction": 0.1}, list(range(10)), list(range(1, 10))),
        ({"drop_fraction": 0.0}, [3, 1], [0, 1]),
        ({"keep_fraction": 0.0}, [3, 1], []),
        ({"keep_fraction": 1.0}, [], []),
        ({"keep_fraction": 0.5}, [None, 1, None, 2], [3]),  # half of the two that have a value
        ({"min_quantile": 0.5}, [1, 2, 2, 3], [1, 2, 3]),  # the median is 2; ties stay together
        ({"min_quantile": 0.25}, [0, 10, 20, 30], [1, 2, 3]),  # 7.5, between 0 and 10
        ({"max_quantile": 0.25}, [0, 10, 20, 30], [0]),
        ({"max_quantile": 0.0}, [4, 3, 3], [1, 2]),
        ({"equals": "en"}, WORDS, [0, 4]),
        ({"equals": ""}, WORDS, [3]),
        ({"not_equals": ""}, WORDS, [0, 1, 4]),  # no value is not another value
        ({"one_of": ["de", "fr", ""]}, WORDS, [1, 3]),
        ({"equals": 2}, [1, 2, None], [1]),
        ({"one_of": [1, 3]}, [1, 2, 3], [0, 2]),
    ],
)
def test_rules_by_hand(rule, values, wanted):
    assert kept(rule, values) == wanted


def test_ties_fall_by_uid_and_not_by_place():
    assert kept({"keep_fraction": 0.5}, [5.0] * 4, uids=[9, 2, 7, 4]) == [1, 3]


def test_within_source_takes_the_share_of_each():
    values, shards = [1, 10, 2, 20, 3, 30, 40], [0, 1, 0, 1, 0, 1, 1]
    assert kept({"keep_fraction": 0.5}, values, shards=shards) == [1, 3, 5, 6]
    assert kept({"keep_fraction": 0.5, "within": "source"}, values, shards=shards) == [2, 4, 5, 6]
    assert kept({"min_quantile": 0.5, "within": "source"}, values, shards=shards) == [2, 4, 5, 6]  # from 2; from 25


def test_a_bound_has_the_precision_of_its_column():
    """0.7 as float32 is 0.699999988: whoever wrote 0.7 into a table and 0.7 into a recipe meant the same."""
    scores = np.array([0.7, 0.69], dtype=np.float32)
    view = make_view(2)
    for single, wanted in ((True, [0]), (False, [])):
        view.pool.columns["c"] = Column(scores.astype(np.float64), np.ones(2, dtype=bool), single=single)
        assert kept_rows_of(apply("column", view, column="c", min=0.7)) == wanted


def test_whole_numbers_keep_all_their_bits():
    view = make_view(2, c=[np.uint64(2**64 - 1), np.uint64(2**64 - 2)])
    assert view.column("c").tolist() == [2**64 - 1, 2**64 - 2]
    assert view.column("c").dtype == np.uint64


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"column": "c"}, "exactly one of min, max"),
        ({"column": "c", "min": 1, "max": 2}, "it has min, max"),
        ({"column": "c", "min": 1, "within": "source"}, "goes with a fraction"),
        ({"column": "c", "keep_fraction": 1.5}, "less than or equal to 1"),
        ({"column": "c", "minn": 1}, "did you mean 'min'"),
        ({"column": "c", "min": 1, "name": "damaged"}, "the funnel has a row of that name"),
        ({"rule": "colunm", "column": "c", "min": 1}, "did you mean 'column'"),
        ({"rule": "where", "where": {"any": [], "not": {}}}, "not any, not together"),
        ({"rule": "where", "where": {"any": [{"column": "c"}]}}, "exactly one of"),
        ({"rule": "where", "where": {"any": []}}, "at least 1"),
        ({"rule": "uids", "uids": "a.npy b.npy"}, "an operator was expected"),
        ({"rule": "baseline", "baseline": "clip_scor"}, "did you mean 'clip_score'"),
    ],
)
def test_recipes_that_say_nothing_clear_are_refused(rule, message):
    tree = {"shards": "s", "out": "o", "rules": [{"name": "r", **rule}]}
    with pytest.raises(ConfigError, match=message):
        check_recipe(SelectionRecipe, tree, "test")


@pytest.mark.parametrize(("rule", "values"), [({"min": 1}, ["a"]), ({"equals": 1}, ["a"]), ({"equals": "a"}, [1])])
def test_words_are_no_numbers(rule, values):
    with pytest.raises(ConfigError, match="column 'c' holds"):
        kept(rule, values)


A, B = {"column": "a", "min": 3}, {"column": "b", "equals": "x"}


@pytest.mark.parametrize(
    ("condition", "wanted", "unscored"),
    [
        # a:  1  3  5  3  -  -      b:  x  y  x  -  x  -
        (A, [1, 2, 3], [4, 5]),
        ({"not": A}, [0], [4, 5]),  # without a value it does not fail either
        ({"all": [A, B]}, [2], [3, 4, 5]),  # 0 and 1 fail, whatever else
        ({"any": [A, B]}, [0, 1, 2, 3, 4], [5]),
        ({"not": {"any": [A, B]}}, [], [5]),
        ({"not": {"all": [A, B]}}, [0, 1], [3, 4, 5]),
        ({"all": [A, {"not": B}]}, [1], [3, 5]),  # 4 has an x, so it fails
        ({"any": [{"all": [A, B]}, {"not": A}]}, [0, 2], [3, 4, 5]),
        ({"column": "a", "keep_fraction": 0.5}, [1, 2], [4, 5]),  # of the four with a value
        ({"not": {"column": "a", "keep_fraction": 0.5}}, [0, 3], [4, 5]),
    ],
)
def test_conditions_by_hand(condition, wanted, unscored):
    view = make_view(6, a=[1, 3, 5, 3, None, None], b=["x", "y", "x", None, "x", None])
    answer = apply("where", view, where=condition)
    assert kept_rows_of(answer) == wanted
    assert np.flatnonzero(answer.unscored).tolist() == unscored


conditions = st.recursive(
    st.builds(lambda bound: {"column": "a", "min": bound}, st.integers(0, 4))
    | st.builds(lambda word: {"column": "b", "equals": word}, st.sampled_from("xyz")),
    lambda inner: (
        st.builds(lambda one: {"not": one}, inner)
        | st.builds(
            lambda joint, parts: {joint: parts},
            st.sampled_from(["all", "any"]),
            st.lists(inner, min_size=1, max_size=3),
        )
    ),
    max_leaves=6,
)


def slowly(condition: dict, a, b) -> bool | None:
    """One sample; None is undecided."""
    if "not" in condition:
        inner = slowly(condition["not"], a, b)
        return None if inner is None else not inner
    for joint, decisive in (("all", False), ("any", True)):
        if joint in condition:
            parts = [slowly(part, a, b) for part in condition[joint]]
            return decisive if decisive in parts else None if None in parts else not decisive
    if condition["column"] == "a":
        return None if a is None else a >= condition["min"]
    return None if b is None else b == condition["equals"]


@given(conditions, st.lists(st.tuples(st.none() | st.integers(0, 4), st.none() | st.sampled_from("xyz")), min_size=1))
def test_conditions_equal_one_sample_at_a_time(condition, samples):
    view = make_view(len(samples) + 1, a=[*(a for a, _ in samples), 0], b=[*(b for _, b in samples), "x"])
    answer = apply("where", view, where=condition)
    decided = [slowly(condition, *sample) for sample in samples]
    assert answer.kept[:-1].tolist() == [one is True for one in decided]
    assert answer.unscored[:-1].tolist() == [one is None for one in decided]


def test_the_funnel_has_a_row_for_what_was_undecided():
    view = make_view(6, a=[1, 3, 5, 3, None, None], b=["x", "y", "x", None, "x", None])
    opened = [
        open_rule("both", "where", {"where": {"all": [A, B]}}),
        open_rule("rest", "column", {"column": "a", "min": 9}),
    ]
    sifted = sift(opened, view.pool)
    assert [(row["rule"], row["dropped"], row["left"]) for row in sifted.funnel] == [
        ("all", 0, 6), ("damaged", 0, 6), ("no score", 3, 3), ("both", 2, 1), ("rest", 1, 0),
    ]  # fmt: skip
    assert [sifted.reasons[number] for number in sifted.dropped_by] == [
        "both", "both", "rest", "no score", "no score", "no score",
    ]  # fmt: skip


def test_examples_lie_next_to_the_boundary():
    values = list(range(100, 0, -1))
    view = make_view(100, c=values)
    answer = apply("column", view, column="c", min=50)
    examples = near_the_boundary("r", view, answer, ~answer.kept)
    assert [one["value"] for one in examples.kept] == list(range(50, 50 + NUM_EXAMPLES))
    assert [one["value"] for one in examples.dropped] == list(range(49, 49 - NUM_EXAMPLES, -1))
    assert examples.kept[0] == {"uid": f"{50:032x}", "shard": "00000.tar", "row": 50, "key": "50", "value": 50.0}


def test_examples_without_values_are_drawn_by_uid():
    view = make_view(40, uids=list(range(40, 0, -1)), c=[None, *([7.0] * 38), None])
    answer = apply("where", view, where={"column": "c", "max": 7})
    examples = near_the_boundary("r", view, answer, ~answer.kept)
    assert [int(one["uid"], 16) for one in examples.kept] == list(range(2, 2 + NUM_EXAMPLES))
    assert [(one["row"], one["value"]) for one in examples.dropped] == [(39, None), (0, None)]
    assert json.loads(json.dumps(examples.kept[0]))["value"] is None


def test_the_written_recipe_is_one_again(tmp_path):
    from rebus.config import dump_recipe

    entries = [
        {"name": "plain", "column": "c", "keep_fraction": 0.5},
        {"name": "joined", "rule": "where", "where": {"any": [A, {"not": B}]}},
    ]
    recipe = check_recipe(SelectionRecipe, {"shards": "s", "out": "o", "rules": entries}, "test")
    dump_recipe(recipe, tmp_path / "recipe.yaml")
    again = load_recipe(SelectionRecipe, tmp_path / "recipe.yaml")
    assert again == recipe
    assert [entry.open().made_by for entry in again.rules] == [entry.open().made_by for entry in recipe.rules]
    changed = load_recipe(SelectionRecipe, tmp_path / "recipe.yaml", ["rules.0.keep_fraction=0.25"])
    assert changed.rules[0].open().options.keep_fraction == 0.25
