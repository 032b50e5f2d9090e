"""Balance: caps by counting, entries against matching them one by one, chances against their frequency."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_pools import kept_rows_of, make_view, numbered_uids

from rebus.config import check_recipe
from rebus.errors import ConfigError, DataError
from rebus.selection.clusters import find_centroids, nearest_centroid, unit_rows
from rebus.selection.draws import draw, drawn_order
from rebus.selection.entries import find_entries, plant, read_entries
from rebus.selection.pool import load_pool
from rebus.selection.rules import balance
from rebus.selection.rules.balance import Rule, apply
from rebus.selection.view import View
from tiny_samples import TinySample, tiny_picture, write_shards

words = st.lists(st.sampled_from(["red", "dog", "a", "été", "t-shirt", "o'er"]), min_size=1, max_size=4)


@given(st.lists(words, min_size=1, max_size=12), st.lists(words | st.just([]), max_size=12))
def test_entries_are_found_as_whole_words_in_a_row(entries, texts):
    names = sorted({" ".join(entry) for entry in entries})
    captions = [" ".join(text) for text in texts]
    wanted = [
        (row, number)
        for row, caption in enumerate(captions)
        for number, name in enumerate(names)
        if f" {name} " in f" {caption} "
    ]
    found = find_entries(plant(names), pa.array(captions, pa.string()))
    assert list(zip(*(part.tolist() for part in found), strict=True)) == wanted


def test_case_and_punctuation_hide_no_entry(tmp_path):
    path = tmp_path / "entries.txt"
    path.write_text("St. Louis\nred dog\nst louis\n\nRed\n", encoding="utf-8")
    entries = read_entries(path)
    assert entries.names.to_pylist() == ["red", "red dog", "st louis"]
    texts = pa.array(["In ST. LOUIS, a red\ndog!", "redder dogs", ""])
    assert [part.tolist() for part in find_entries(entries, texts)] == [[0, 0, 0], [0, 1, 2]]
    (tmp_path / "none.txt").write_text("...\n")
    with pytest.raises(DataError, match="no entry"):
        read_entries(tmp_path / "none.txt")


def test_draws_are_even_and_independent():
    uids = numbered_uids(range(20_000))
    one, other = draw(uids, 1), draw(uids, 2)
    assert (one >= 0).all()
    assert (one < 1).all()
    counts = np.bincount((one * 10).astype(int), minlength=10)
    assert abs(counts - 2000).max() < 200  # 4.7 standard deviations
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.03
    assert abs(np.corrcoef(one[1:], one[:-1])[0, 1]) < 0.03
    shuffled = np.random.default_rng(0).permutation(20_000)
    assert (draw(uids[shuffled], 1) == one[shuffled]).all()
    assert (uids[drawn_order(uids, 5)] == uids[shuffled][drawn_order(uids[shuffled], 5)]).all()


@pytest.fixture(scope="module")
def captioned(tmp_path_factory) -> View:
    """600 samples: `dog` in 400, `cat` in 40, both in 10 of these, neither in the rest."""
    captions = ["a dog"] * 390 + ["a dog, a cat"] * 10 + ["the cat"] * 30 + ["a tree"] * 170
    samples = [TinySample(caption, tiny_picture()) for caption in captions]
    folder = write_shards(tmp_path_factory.mktemp("pool"), samples, samples_per_shard=50)
    pool = load_pool(sorted(folder.glob("*.tar")), None, ["num_images"])
    return View(pool, np.arange(len(pool)))


def test_the_head_is_thinned_and_the_tail_stays_whole(captioned, tmp_path):
    (tmp_path / "entries.txt").write_text("dog\ncat\nunicorn\n")
    rule = Rule(by="entries", entries=tmp_path / "entries.txt", at_most=100)
    answer = apply(rule, captioned)
    assert answer.counts == {"entries found": 2, "entries above at_most": 1, "samples without entry": 170}
    assert answer.kept[390:430].all()  # of 40 cats none is lost
    assert not answer.kept[430:].any()
    assert 70 <= answer.kept[:390].sum() <= 130  # 97.5 expected, standard deviation 8.6
    other = apply(rule.model_copy(update={"seed": 1}), captioned)
    assert other.kept.tolist() != answer.kept.tolist()
    everything = apply(rule.model_copy(update={"at_most": 400, "unmatched": "keep"}), captioned)
    assert everything.kept.all()


def test_the_list_may_stand_in_any_order(captioned, tmp_path):
    kept = []
    for name, text in (("one", "dog\ncat"), ("two", "zebra\ncat\ndog")):
        (tmp_path / name).write_text(text)
        kept.append(apply(Rule(by="entries", entries=tmp_path / name, at_most=50), captioned).kept.tolist())
    assert kept[0] == kept[1]
    assert 0 < sum(kept[0][:390]) < 390
    changed = [balance.inputs(Rule(by="entries", entries=tmp_path / name, at_most=50)) for name in ("one", "two")]
    assert changed[0] != changed[1]


def test_values_are_capped_by_preference_or_by_draw():
    languages = ["en"] * 5 + ["de"] * 2 + [None]
    view = make_view(8, t__language=languages, z=[1.0, 5.0, 3.0, 3.0, None, 0.0, 1.0, 9.0])
    answer = apply(Rule(by="values", column="t.language", at_most=3, prefer="z"), view)
    assert kept_rows_of(answer) == [1, 2, 3, 5, 6]
    assert answer.unscored.tolist() == [False] * 7 + [True]
    assert answer.counts == {"groups": 2, "groups above at_most": 1}
    drawn = [kept_rows_of(apply(Rule(by="values", column="t.language", at_most=3, seed=s), view)) for s in range(9)]
    assert all(len(rows) == 5 and rows[-2:] == [5, 6] for rows in drawn)
    assert len({tuple(rows) for rows in drawn}) > 2


@settings(max_examples=30)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=40), st.integers(1, 5), st.integers(0, 2**32))
def test_a_cap_is_exact_whatever_the_order_of_the_shards(values, cap, seed):
    rule = Rule(by="values", column="v", at_most=cap)
    order = np.random.default_rng(seed).permutation(len(values))

    def stay(rows) -> set[int]:
        view = make_view(len(rows), uids=rows, v=[float(values[row]) for row in rows])
        return set(rows[apply(rule, view).kept].tolist())

    kept = stay(np.arange(len(values)))
    assert kept == stay(order)
    counts = np.bincount([values[row] for row in kept], minlength=5)
    assert counts.tolist() == np.minimum(np.bincount(values, minlength=5), cap).tolist()


def test_clusters_come_apart_and_are_capped(monkeypatch):
    draw_ = np.random.default_rng(0)
    middles = np.eye(4, 16)
    sizes = [60, 25, 10, 5]
    labels = np.repeat(np.arange(4), sizes)
    vectors = (middles[labels] * 3 + 0.1 * draw_.normal(size=(100, 16))).astype(np.float32)
    vectors[7] = np.nan
    monkeypatch.setattr(View, "vectors", lambda view, name: vectors)
    answer = apply(Rule(by="clusters", column="clip.image", num_clusters=8, at_most=12), make_view(100))
    assert answer.unscored.tolist() == [row == 7 for row in range(100)]
    units = unit_rows(np.delete(vectors, 7, axis=0))
    found, _ = nearest_centroid(units, find_centroids(units, 8, seed=0))
    own = np.delete(labels, 7)
    assert all(len(set(own[found == cluster])) == 1 for cluster in set(found.tolist()))  # none joins two middles
    wanted = np.minimum(np.bincount(found, minlength=8), 12)
    kept = np.delete(answer.kept, 7)
    assert np.bincount(found[kept], minlength=8).tolist() == wanted.tolist()


def test_an_empty_cluster_starts_anew():
    vectors = unit_rows(np.repeat(np.eye(3, 5), [20, 20, 1], axis=0))
    for seed in range(6):
        labels, cosines = nearest_centroid(vectors, find_centroids(vectors, 3, seed))
        assert len(set(labels.tolist())) == 3
        assert cosines.min() > 0.999


@pytest.mark.parametrize(
    "options",
    [
        {"by": "values", "at_most": 3},
        {"by": "entries", "at_most": 3},
        {"by": "entries", "entries": "x", "at_most": 3, "prefer": "z"},
        {"by": "values", "column": "a", "at_most": 0},
        {"by": "clusters", "column": "a", "at_most": 3, "unmatched": "keep"},
    ],
)
def test_options_that_do_not_go_together_are_refused(options):
    with pytest.raises(ConfigError):
        check_recipe(Rule, options, "test")
