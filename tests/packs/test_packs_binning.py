"""Best-fit decreasing: against a slow reference, and what holds for any lengths."""

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rebus.packs import binning
from rebus.packs.binning import NOT_PLACED, best_fit_decreasing, fill
from rebus.packs.choice import BEST_FIT, MAX_EXACT, choose_packs
from rebus.packs.complement import fill_exactly
from rebus.packs.cutting import Limits
from rebus.packs.patches import best_fit_patches

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from baselines import (
    first_fit_decreasing,
    global_best_fit,
    next_fit,
    no_packing,
    summed_first_fit,
)

documents = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 4)), max_size=60)


def slow_best_fit(lengths, images, capacity, limit):
    """The textbook: for each document scan all packs for the least room; the pack with the least number on a tie."""
    packs = np.full(len(lengths), NOT_PLACED)
    rooms = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], -images[i])):
        if lengths[i] > capacity or images[i] > limit:
            continue
        fitting = [(t, m, p) for p, (t, m) in enumerate(rooms) if t >= lengths[i] and m >= images[i]]
        pack = min(fitting)[2] if fitting else len(rooms)
        if not fitting:
            rooms.append((capacity, limit))
        rooms[pack] = (rooms[pack][0] - lengths[i], rooms[pack][1] - images[i])
        packs[i] = pack
    return packs, sorted(rooms)


@given(documents=documents, capacity=st.integers(1, 50), limit=st.integers(0, 8))
@settings(max_examples=300, deadline=None)
def test_is_best_fit_decreasing(documents, capacity: int, limit: int):
    lengths = np.array([length for length, _ in documents], dtype=np.int32)
    images = np.array([count for _, count in documents], dtype=np.int32)
    packs = best_fit_decreasing(lengths, capacity, images, limit)
    slow, slow_rooms = slow_best_fit(lengths.tolist(), images.tolist(), capacity, limit)
    rooms = [
        (capacity - int(lengths[packs == p].sum()), limit - int(images[packs == p].sum()))
        for p in range(packs.max(initial=-1) + 1)
    ]
    # Which of two equally full packs is taken is free; how full they all end is not.
    assert sorted(rooms) == slow_rooms
    assert ((packs == NOT_PLACED) == (slow == NOT_PLACED)).all()
    assert all(tokens >= 0 and count >= 0 for tokens, count in rooms)


@given(lengths=st.lists(st.integers(1, 40), max_size=60), capacity=st.integers(1, 50))
@settings(max_examples=200, deadline=None)
@pytest.mark.parametrize(
    "rule",
    [best_fit_decreasing, first_fit_decreasing, next_fit, global_best_fit, summed_first_fit, no_packing],
)
def test_no_document_lost_and_no_capacity_broken(rule, lengths: list[int], capacity: int):
    sizes = np.array(lengths, dtype=np.int32)
    packs = rule(sizes, capacity)
    assert ((packs == NOT_PLACED) == (sizes > capacity)).all()
    loads = np.bincount(packs[packs >= 0], weights=sizes[packs >= 0])
    assert (loads <= capacity).all()
    assert (loads > 0).all()
    assert (packs == rule(sizes, capacity)).all()


@pytest.mark.parametrize(("low", "high"), [(10, 60), (59, 109)])
def test_small_corpus_fills_its_packs(low: int, high: int):
    """About 20 packs: only the last one may be part empty."""
    lengths = np.random.default_rng(0).integers(low, high, size=20 * 1024 // ((low + high) // 2))
    assert fill(lengths, best_fit_decreasing(lengths, 1024), 1024) >= 0.95


def test_image_limit_holds_where_tokens_leave_room():
    packs = best_fit_decreasing(np.full(10, 5), 100, np.ones(10, dtype=int), 4)
    assert np.bincount(packs).tolist() == [4, 4, 2]


def test_fill_of_nothing():
    assert fill(np.array([9]), best_fit_decreasing(np.array([9]), 4), 4) == 0.0


@given(lengths=st.lists(st.integers(1, 40), max_size=80), capacity=st.integers(1, 60))
@settings(max_examples=300, deadline=None)
def test_exact_fill_loses_nothing_and_breaks_no_capacity(lengths: list[int], capacity: int):
    sizes = np.array(lengths, dtype=np.int32)
    packs = fill_exactly(sizes, capacity)
    assert ((packs == NOT_PLACED) == (sizes > capacity)).all()
    loads = np.bincount(packs[packs >= 0], weights=sizes[packs >= 0])
    assert (loads <= capacity).all()
    assert (loads > 0).all()
    assert (packs == fill_exactly(sizes, capacity)).all()


def test_exact_fill_beats_best_fit_where_images_cannot_be_split():
    """The caption case: 144 positions an image and some words, 4096 a pack. No packing can need fewer than `bound`."""
    rng = np.random.default_rng(0)
    lengths = 144 + np.clip(rng.lognormal(3.3, 0.6, 20_000).astype(int), 3, 500)
    bound = -(-lengths.sum() // 4096)
    assert fill_exactly(lengths, 4096).max() + 1 <= bound + 2
    assert best_fit_decreasing(lengths, 4096).max() + 1 > bound * 1.01


many = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 3), st.integers(0, 30)), min_size=1, max_size=60)


def columns(documents) -> list[np.ndarray]:
    lengths, images, patches = (np.array(column, dtype=np.int32) for column in zip(*documents, strict=True))
    return [lengths, images, np.where(images > 0, patches, 0)]


def within(packs: np.ndarray, sizes: np.ndarray, limit: int | None) -> bool:
    placed = packs >= 0
    return limit is None or bool((np.bincount(packs[placed], weights=sizes[placed]) <= limit).all())


@given(documents=many, max_images=st.none() | st.integers(0, 6), max_patches=st.integers(0, 70))
@settings(max_examples=300, deadline=None)
def test_patches_are_limited_and_nothing_is_lost(documents, max_images: int | None, max_patches: int):
    lengths, images, patches = columns(documents)
    packs = best_fit_patches(lengths, 30, images, max_images, patches, max_patches)
    too_large = (lengths > 30) | (patches > max_patches) | (images > (30 if max_images is None else max_images))
    assert ((packs == NOT_PLACED) == too_large).all()
    assert within(packs, lengths, 30)
    assert within(packs, images, max_images)
    assert within(packs, patches, max_patches)
    used = np.unique(packs[packs >= 0])
    assert (used == np.arange(len(used))).all()


def test_patches_that_do_not_bind_cost_no_fill():
    rng = np.random.default_rng(0)
    images = rng.integers(200, 900, 5000, dtype=np.int32)
    lengths = images + rng.integers(20, 200, 5000, dtype=np.int32)
    ones = np.ones_like(images)
    free = best_fit_decreasing(lengths, 8192)
    limited = best_fit_patches(lengths, 8192, ones, None, images * 4, 8192 * 4)
    assert limited.max() <= free.max() * 1.002
    binding = best_fit_patches(lengths, 8192, ones, None, images * 4, 8192 * 2)
    assert images.sum() * 4 / ((binding.max() + 1) * 8192 * 2) > 0.97


def test_limits_that_no_pack_can_reach_cost_no_memory():
    lengths, patches = np.array([5, 7, 20], np.int32), np.array([1, 9, 4], np.int32)
    packs = best_fit_patches(lengths, 30, np.ones_like(lengths), 10**12, patches, 10**12)
    assert (packs == best_fit_patches(lengths, 30, np.ones_like(lengths), None, patches, 14)).all()


@given(
    documents=many,
    max_images=st.none() | st.integers(3, 6),
    max_patches=st.none() | st.integers(30, 70),
    one_size=st.booleans(),
    seed=st.integers(0, 3),
)
@settings(max_examples=200, deadline=None)
def test_the_chosen_packs_keep_every_limit(documents, max_images, max_patches, one_size: bool, seed: int):
    lengths, images, patches = columns(documents)
    patches = images * 7 if one_size else patches
    place = np.random.default_rng(seed).random(len(lengths))
    _, packs = choose_packs(lengths, Limits(40, max_images, max_patches), images, patches, place)
    assert (packs >= 0).all()
    assert within(packs, lengths, 40)
    assert within(packs, images, max_images)
    assert within(packs, patches, max_patches)
    assert set(packs.tolist()) == set(range(packs.max() + 1))


def test_many_documents_are_packed_by_best_fit_alone():
    lengths = np.random.default_rng(0).integers(100, 200, MAX_EXACT + 1, dtype=np.int32)
    nothing = np.zeros_like(lengths)
    place = np.random.default_rng(1).random(len(lengths))
    assert choose_packs(lengths, Limits(1024), nothing, nothing, place)[0] == BEST_FIT


@given(lengths=st.lists(st.integers(1, 40), max_size=60), capacity=st.integers(1, 50))
@settings(max_examples=100, deadline=None)
def test_one_by_one_and_in_groups_fill_alike(lengths: list[int], capacity: int):
    sizes = np.array(lengths, dtype=np.int32)
    loads = []
    for few in (0, 10**9):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(binning, "FEW", few)
            packs = best_fit_decreasing(sizes, capacity)
        loads.append(sorted(np.bincount(packs[packs >= 0], weights=sizes[packs >= 0]).tolist()))
    assert loads[0] == loads[1]
    reference = global_best_fit(sizes, capacity)
    assert loads[0] == sorted(np.bincount(reference[reference >= 0], weights=sizes[reference >= 0]).tolist())
