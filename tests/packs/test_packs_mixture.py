"""Repeats, weights, resampling, the validation split and copies: arithmetic that loses and doubles nothing."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rebus.errors import ConfigError
from rebus.packs.config import PackRecipe, ShardsFolder
from rebus.packs.copies import separate_copies
from rebus.packs.holdout import is_held_out
from rebus.packs.mixture import expand, folder_repeats, list_folders

sizes = st.lists(st.integers(0, 40), min_size=1, max_size=4)


def folder(**share) -> ShardsFolder:
    return ShardsFolder(folder=Path("a"), **share)


@given(counts=sizes, repeats=st.lists(st.floats(0.05, 4), min_size=4, max_size=4), seed=st.integers(0, 5))
@settings(max_examples=200, deadline=None)
def test_every_document_comes_as_often_as_its_folder_says(counts: list[int], repeats: list[float], seed: int):
    bounds = np.cumsum([0, *counts])
    document, place = expand(bounds, repeats[: len(counts)], seed)
    assert ((place >= 0) & (place < 1)).all()
    for start, end, repeat in zip(bounds[:-1], bounds[1:], repeats, strict=False):
        copies = np.bincount(document, minlength=bounds[-1])[start:end]
        assert set(copies.tolist()) <= {int(repeat), int(repeat) + 1}
        assert copies.sum() == int(repeat) * (end - start) + round((end - start) * (repeat - int(repeat)))
    again = expand(bounds, repeats[: len(counts)], seed)
    assert (again[0] == document).all()
    assert (again[1] == place).all()


def test_copies_stand_far_apart():
    document, place = expand(np.array([0, 100]), [3.0], 0)
    in_order = document[np.argsort(place)].reshape(3, 100)
    assert all(len(set(third.tolist())) == 100 for third in in_order)
    assert in_order[0].tolist() != list(range(100))


def test_a_fraction_is_another_one_with_another_seed():
    kept = [set(expand(np.array([0, 200]), [0.25], seed)[0].tolist()) for seed in (0, 1)]
    assert len(kept[0]) == len(kept[1]) == 50
    assert kept[0] != kept[1]


@given(
    counts=st.lists(st.integers(1, 10_000), min_size=1, max_size=4),
    weights=st.lists(st.floats(0.1, 9), min_size=4, max_size=4),
)
@settings(max_examples=100, deadline=None)
def test_weights_are_shares_of_an_epoch_as_long_as_all_folders(counts: list[int], weights: list[float]):
    folders = [folder(weight=weight) for weight in weights[: len(counts)]]
    repeats = folder_repeats(counts, folders)
    epoch = [count * repeat for count, repeat in zip(counts, repeats, strict=True)]
    assert sum(epoch) == pytest.approx(sum(counts))
    assert [one / sum(epoch) for one in epoch] == pytest.approx(
        [one.weight / sum(weights[: len(counts)]) for one in folders]
    )


def test_square_roots_of_what_folders_hold():
    repeats = folder_repeats([100, 400], [folder(), folder()], "sqrt")
    assert [100 * repeats[0], 400 * repeats[1]] == pytest.approx([500 / 3, 1000 / 3])
    assert folder_repeats([100, 400], [folder(repeat=2.5), folder()]) == [2.5, 1.0]
    assert folder_repeats([0, 10], [folder(weight=1), folder(weight=1)]) == pytest.approx([1.0, 1.0])


def test_a_mixture_file_lists_folders(tmp_path: Path):
    path = tmp_path / "mixture.json"
    path.write_text(json.dumps({"shards": [{"folder": "one", "repeat": 0.5}, {"folder": "two"}]}))
    found = list_folders([path, Path("three")])
    assert [(str(one.folder), one.repeat) for one in found] == [("one", 0.5), ("two", None), ("three", None)]
    path.write_text('{"shards": [{"folder": "one", "weight": 2}]}')
    with pytest.raises(ConfigError, match="1 of 2 folders have a `weight`"):
        list_folders([path, Path("three")])
    path.write_text("[]")
    with pytest.raises(ConfigError, match="is no mixture"):
        list_folders([path])


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"shards": [{"folder": "a", "weight": 1}, "b"]}, "give one to each"),
        ({"shards": [{"folder": "a", "weight": 1}], "resample": "sqrt"}, "give one of them"),
        ({"shards": [{"folder": "a", "weight": 1, "repeat": 2}]}, "both `repeat` and `weight`"),
        ({"shards": ["a"], "part": "heldout"}, "is nothing"),
    ],
)
def test_recipes_that_contradict_themselves(settings_: dict, message: str):
    with pytest.raises(ValueError, match=message):
        PackRecipe(**settings_, tokens={"tokenizer": "t"}, out=Path("o"))


@given(seed=st.integers(0, 9), share=st.floats(0.1, 0.9))
@settings(max_examples=30, deadline=None)
def test_the_split_depends_on_the_uid_alone(seed: int, share: float):
    uids = np.random.default_rng(0).integers(0, 256, (4000, 16), dtype=np.uint8)
    held = is_held_out(uids, share, seed)
    assert abs(held.mean() - share) < 0.04
    assert (is_held_out(uids[::-7], share, seed) == held[::-7]).all()
    assert not (held & ~is_held_out(uids, share + 0.05, seed)).any()


def test_numbers_in_a_row_are_split_evenly():
    uids = np.zeros((4000, 16), np.uint8)
    uids[:, 14:] = np.arange(4000, dtype=">u2").view(np.uint8).reshape(-1, 2)
    held = is_held_out(uids, 0.25, 0)
    assert abs(held.mean() - 0.25) < 0.04
    assert abs(held[:400].mean() - 0.25) < 0.08


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 5)), min_size=1, max_size=40))
@settings(max_examples=200, deadline=None)
def test_parting_copies_changes_no_load(pairs):
    document, packs = (np.array(column, dtype=np.int32) for column in zip(*sorted(pairs), strict=True))
    lengths = document % 3 + 1
    before = np.bincount(packs, weights=lengths)

    def doubles(packs: np.ndarray) -> int:
        return len(pairs) - len(set(zip(document.tolist(), packs.tolist(), strict=True)))

    parted = separate_copies(document, packs.copy(), (lengths,))
    assert (np.bincount(parted, weights=lengths) == before).all()
    assert doubles(parted) <= doubles(packs)


def test_copies_that_can_be_parted_are():
    parted = separate_copies(np.array([7, 7, 8, 8]), np.array([0, 0, 1, 1]), (np.full(4, 5),))
    assert sorted(parted.tolist()) == [0, 0, 1, 1]
    assert parted[0] != parted[1]
