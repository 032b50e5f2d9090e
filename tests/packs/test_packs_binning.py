"""Best-fit decreasing: against a slow reference, and what holds for any lengths."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rebus.packs.binning import NOT_PLACED, best_fit_decreasing, fill, first_fit_decreasing, next_fit
from rebus.packs.complement import choose_packs, fill_exactly

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
@pytest.mark.parametrize("rule", [best_fit_decreasing, first_fit_decreasing, next_fit])
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


@given(
    documents=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 3)), min_size=1, max_size=60),
    limit=st.none() | st.integers(1, 6),
    seed=st.integers(0, 3),
)
@settings(max_examples=150, deadline=None)
def test_the_chosen_packs_keep_both_limits(documents, limit: int | None, seed: int):
    lengths, images = (np.array(column, dtype=np.int32) for column in zip(*documents, strict=True))
    _, packs = choose_packs(lengths, 50, images, limit, seed)
    assert ((packs == NOT_PLACED) == (images > limit if limit is not None else np.zeros(len(images), bool))).all()
    placed = packs >= 0
    assert (np.bincount(packs[placed], weights=lengths[placed]) <= 50).all()
    assert limit is None or (np.bincount(packs[placed], weights=images[placed]) <= limit).all()
    assert packs.max() <= best_fit_decreasing(lengths, 50, images, limit).max()
