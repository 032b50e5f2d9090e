"""Near-duplicates against comparing all with all, and which of them stay against judging one by one."""

import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from made_pools import kept_rows_of, make_view

from rebus.config import check_recipe
from rebus.errors import ConfigError
from rebus.scores.config import ScoreRecipe
from rebus.scores.run import run as run_scores
from rebus.selection import neighbours
from rebus.selection.clusters import unit_rows
from rebus.selection.config import SelectionRecipe
from rebus.selection.groups import first_of_equals, first_of_uids, keep_greedily, keep_linked
from rebus.selection.hamming import _tables, near_across, near_pairs
from rebus.selection.neighbours import Buckets, nearest_kept
from rebus.selection.pool import load_pool
from rebus.selection.rules import duplicates
from rebus.selection.run import run
from rebus.selection.view import View
from tiny_pictures import encoded, photo
from tiny_samples import TinySample, tiny_picture, write_shards

U = np.uint64


@st.composite
def hash_lists(draw, max_size: int = 40):
    """Hashes that lie near one another more often than chance would have it, equal ones among them."""
    seeds = draw(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=6))
    flips = st.lists(st.integers(0, 63), max_size=9)
    pairs = draw(st.lists(st.tuples(st.sampled_from(seeds), flips), max_size=max_size))
    return np.array([seed ^ sum(1 << bit for bit in set(bits)) for seed, bits in pairs], dtype=np.uint64)


def apart(one, other) -> int:
    return (int(one) ^ int(other)).bit_count()


@given(hash_lists(), st.integers(0, 9))
def test_near_pairs_are_all_pairs_within_the_distance_each_once(hashes, distance):
    near = near_pairs(hashes, distance)
    found = list(zip(near.left.tolist(), near.right.tolist(), near.distance.tolist(), strict=True))
    wanted = [(i, j, apart(hashes[i], hashes[j])) for j in range(len(hashes)) for i in range(j)]
    assert sorted(found) == sorted(pair for pair in wanted if pair[2] <= distance)


@given(hash_lists(20), hash_lists(20), st.integers(0, 6))
def test_near_across_finds_all_between_two_sets(left, right, distance):
    near = near_across(left, right, distance)
    found = list(zip(near.left.tolist(), near.right.tolist(), strict=True))
    wanted = [(i, j) for i, a in enumerate(left) for j, b in enumerate(right) if apart(a, b) <= distance]
    assert sorted(found) == sorted(wanted)


@pytest.mark.parametrize(("distance", "agree"), [(4, 1), (4, 2), (2, 3), (16, 1)])
def test_every_choice_of_bands_finds_the_same(distance, agree, monkeypatch):
    """The number of bands follows from the pool's size; here each is forced on one of 2,000, thousands of them near."""
    from rebus.selection import hamming

    monkeypatch.setattr(hamming, "_cost", lambda num, distance, of: 0 if of == agree else 1)
    draw = np.random.default_rng(3)
    hashes = draw.integers(0, 2**64, 2000, dtype=np.uint64)
    for row in range(1000, 2000):
        for bit in draw.integers(0, 64, distance):
            hashes[row] = (hashes[row - 1000] if bit % 2 else hashes[row]) ^ U(1 << int(bit))
    near = near_pairs(hashes, distance)
    table = np.triu(np.bitwise_count(hashes[:, None] ^ hashes[None]) <= distance, 1)
    assert sorted(zip(near.left.tolist(), near.right.tolist(), strict=True)) == [tuple(p) for p in np.argwhere(table)]
    assert len(near.left) > 50
    assert len(next(iter(_tables(10, distance)))[0]) == agree


edges = st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19)).filter(lambda pair: pair[0] != pair[1]), max_size=40)


@given(edges)
def test_linked_samples_fall_to_the_lowest_of_their_chain(pairs):
    roots = list(range(20))
    for _ in range(20):
        for one, other in pairs:
            roots[one] = roots[other] = min(roots[one], roots[other])
    left, right = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    assert keep_linked(20, left, right).tolist() == roots


@given(edges)
def test_greedy_is_what_judging_in_turn_gives(pairs):
    kept: list[int] = []
    for one in range(20):
        if not any({one, other} in [set(pair) for pair in pairs] for other in kept):
            kept.append(one)
    left, right = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    assert np.flatnonzero(keep_greedily(20, left, right)).tolist() == kept


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1))
def test_the_first_of_equals(pairs):
    uids = np.array(pairs, dtype="<u8,<u8")
    assert first_of_uids(uids).tolist() == [pairs.index(pair) for pair in pairs]
    assert first_of_equals(uids["f0"]).tolist() == [[p[0] for p in pairs].index(pair[0]) for pair in pairs]


@given(hash_lists(30), st.integers(0, 5))
def test_a_dropped_picture_is_near_the_one_that_stays(hashes, distance):
    kept: list[int] = []
    for row, value in enumerate(hashes):
        if all(apart(value, hashes[other]) > distance for other in kept):
            kept.append(row)
    stays = duplicates.near_hashes(hashes, distance, linked=False)
    assert np.flatnonzero(stays == np.arange(len(hashes))).tolist() == kept
    for row, by in enumerate(stays):
        assert by in kept
        assert apart(hashes[row], hashes[by]) == min(
            [apart(hashes[row], hashes[other]) for other in kept if other <= row]
        )


def clustered(num: int, dims: int = 8, spread: float = 0.15, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    middles = draw.normal(size=(max(num // 8, 1), dims))
    return unit_rows(middles[draw.integers(0, len(middles), num)] + spread * draw.normal(size=(num, dims)))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.integers(0, 1000), st.sampled_from([0.8, 0.95, 0.99]))
def test_vectors_stay_as_if_judged_in_turn(num, seed, threshold):
    vectors = clustered(num, seed=seed)
    cosines = vectors @ vectors.T
    kept: list[int] = []
    names = list(range(num))
    for row in range(num):
        like = [other for other in kept if cosines[row, other] >= threshold]
        if like:
            names[row] = max(like, key=lambda other: cosines[row, other])
        else:
            kept.append(row)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "BLOCK", 7)
        patch.setattr(neighbours, "SPAN", 5)
        stays = nearest_kept(vectors, threshold, Buckets(), linked=False)
        linked = nearest_kept(vectors, threshold, Buckets(), linked=True)
    assert stays.tolist() == names
    pairs = np.argwhere(np.triu(cosines >= threshold, 1))
    assert linked.tolist() == keep_linked(num, pairs[:, 0], pairs[:, 1]).tolist()


def test_buckets_miss_only_what_a_border_parts():
    vectors = clustered(3000, dims=32, spread=0.02)
    exact = nearest_kept(vectors, 0.95, Buckets(), linked=False)
    rough = nearest_kept(vectors, 0.95, Buckets(exact_up_to=1000, num_clusters=20), linked=False)
    own = np.arange(3000)
    assert (np.einsum("nd,nd->n", vectors, vectors[rough]) >= 0.95 - 1e-6).all()
    assert (exact != own).sum() > 2000
    assert (rough != own).sum() > 0.9 * (exact != own).sum()
    again = nearest_kept(vectors, 0.95, Buckets(exact_up_to=1000, num_clusters=20), linked=False)
    assert rough.tolist() == again.tolist()


def test_the_preferred_one_stays_then_the_lower_uid():
    view = make_view(
        6,
        uids=[9, 8, 7, 6, 5, 4],
        image_stats__phash=[U(0), U(1), U(3), U(2**40 - 1), U(2**40 - 1), None],
        z=[1.0, 5.0, 1.0, 3.0, 3.0, 9.0],
    )
    answer = duplicates.apply(duplicates.Rule(by="perceptual", distance=2, prefer="z"), view)
    assert kept_rows_of(answer) == [1, 4]
    assert answer.pairs.to_pydict() == {"dropped": [0, 2, 3], "kept": [1, 1, 4], "distance": [1.0, 1.0, 0.0]}
    assert answer.unscored.tolist() == [False] * 5 + [True]
    assert answer.counts == {"groups": 2}
    by_uid = duplicates.apply(duplicates.Rule(by="perceptual", distance=2), view)
    assert kept_rows_of(by_uid) == [2, 4]


def test_a_chain_is_one_group_only_where_that_is_asked():
    view = make_view(3, image_stats__phash=[U(0), U(0b11), U(0b1111)])
    nearest = duplicates.apply(duplicates.Rule(by="perceptual", distance=2), view)
    assert kept_rows_of(nearest) == [0, 2]
    linked = duplicates.apply(duplicates.Rule(by="perceptual", distance=2, groups="linked"), view)
    assert kept_rows_of(linked) == [0]
    assert linked.pairs["distance"].to_pylist() == [2.0, 4.0]


def test_text_alone_is_no_duplicate_picture():
    view = make_view(3, num_images=[0, 0, 1], image_stats__phash=[None, None, U(0)])
    answer = duplicates.apply(duplicates.Rule(by="perceptual"), view)
    assert kept_rows_of(answer) == [0, 1, 2]
    assert not answer.unscored.any()


def test_exact_is_the_same_file_or_the_same_uid():
    content = [U(7), U(8), U(8), U(9), None, None]
    view = make_view(6, uids=[1, 1, 2, 3, 3, 4], image_stats__content=content, num_images=[1, 1, 1, 1, 0, 0])
    exact = duplicates.apply(duplicates.Rule(by="exact"), view)
    assert kept_rows_of(exact) == [0, 3, 5]  # 2 has the file of 1, which has the uid of 0
    uid = duplicates.apply(duplicates.Rule(by="uid"), view)
    assert kept_rows_of(uid) == [0, 2, 3, 5]


@settings(max_examples=30)
@given(hash_lists(25), st.integers(0, 2**32), st.sampled_from(["nearest", "linked"]))
def test_the_order_of_the_shards_decides_nothing(hashes, seed, groups):
    rule = duplicates.Rule(by="perceptual", groups=groups, prefer="z")
    z = np.arange(len(hashes)) % 3
    order = np.random.default_rng(seed).permutation(len(hashes))

    def stay(rows) -> set[int]:
        view = make_view(len(rows), uids=rows, image_stats__phash=list(hashes[rows]), z=z[rows].tolist())
        return set(rows[duplicates.apply(rule, view).kept].tolist())

    assert stay(np.arange(len(hashes))) == stay(order)


def test_captions_are_the_same_whatever_their_case_and_punctuation(tmp_path):
    captions = ["A red  dog.", "a red dog", "Ａ RED DOG!", "a red-dog", "dogs", "...", "...", "un été", "un e\u0301té"]
    folder = write_shards(tmp_path / "shards", [TinySample(text, tiny_picture()) for text in captions], 4)
    pool = load_pool(sorted(folder.glob("*.tar")), None, ["text_chars", "num_images"])
    rule = duplicates.Rule(by="text", prefer="text_chars")
    answer = duplicates.apply(rule, View(pool, np.arange(len(pool))))
    assert kept_rows_of(answer) == [0, 3, 4, 5, 6, 8]


@pytest.mark.parametrize(
    "options",
    [{}, {"by": "text", "distance": 3}, {"by": "embedding"}, {"by": "uid", "column": "x"}, {"by": "exact", "seed": 1}],
)
def test_options_that_do_not_go_together_are_refused(options, tmp_path):
    rule = {"name": "once", "rule": "duplicates", **options}
    with pytest.raises(ConfigError):
        check_recipe(SelectionRecipe, {"shards": "s", "out": "o", "rules": [rule]}, "test")


def test_pictures_saved_again_are_found_and_the_pairs_told(tmp_path):
    one, two = (photo(192, 144, seed) for seed in (1, 2))
    files = [
        encoded(one, "PNG"),
        encoded(one, "JPEG", quality=50),
        encoded(one.resize((96, 72)), "PNG"),
        encoded(two, "PNG"),
        encoded(two, "PNG"),
        encoded(photo(192, 144, 3), "PNG"),
    ]
    samples = [TinySample(f"number {number}", file) for number, file in enumerate(files)]
    shards = write_shards(tmp_path / "shards", samples, samples_per_shard=2)
    run_scores(ScoreRecipe(shards=shards, out=tmp_path / "scores", scorers={"image_stats": {}}))
    rules = [
        {"name": "same file", "rule": "duplicates", "by": "exact"},
        {"name": "same look", "rule": "duplicates", "by": "perceptual", "prefer": "width"},
    ]
    tree = {"shards": str(shards), "scores": str(tmp_path / "scores"), "out": str(tmp_path / "sel"), "rules": rules}
    summary = run(check_recipe(SelectionRecipe, tree, "test"))
    assert [(row["rule"], row["dropped"]) for row in summary.funnel][2:] == [("same file", 1), ("same look", 2)]
    pairs = pq.read_table(tmp_path / "sel" / "pairs.parquet").to_pylist()
    assert [pair["rule"] for pair in pairs] == ["same file", "same look", "same look"]
    assert all(pair["distance"] <= 4 for pair in pairs)
    assert {pair["kept"] for pair in pairs[1:]}.isdisjoint(pair["dropped"] for pair in pairs)


def test_the_recipes_in_the_docs_are_accepted():
    page = (Path(__file__).parents[2] / "docs" / "select_sets.md").read_text()
    recipes = re.findall(r"^```yaml\n(.*?)^```", page, re.M | re.S)
    kinds = {rule["rule"] for recipe in recipes for rule in yaml.safe_load(recipe)["rules"]}
    assert kinds == {"duplicates", "unseen", "balance", "budget"}
    for recipe in recipes:
        check_recipe(SelectionRecipe, yaml.safe_load(recipe), "docs/select_sets.md")
