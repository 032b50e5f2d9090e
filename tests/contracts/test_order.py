"""Contract 4: order is arithmetic. The packs of a step do not depend on the number of ranks, and nothing is stored."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rebus.batches import order
from rebus.batches.order import num_steps_for, packs_between, permutation, step_packs

WORLDS = [1, 2, 3, 4, 8]


@st.composite
def plans(draw) -> dict:
    """The arguments of step_packs that are of the plan and the recipe."""
    num_packs = draw(st.integers(1, 40))
    inner = draw(st.lists(st.integers(0, num_packs), max_size=4))
    costs = st.lists(st.integers(1, 5), min_size=num_packs, max_size=num_packs)  # few values: ties are common
    return {
        "num_packs": num_packs,
        "packs_per_step": draw(st.integers(1, 12)),
        "seed": draw(st.integers(0, 9)),
        "blocks": draw(st.sampled_from([None, np.array([0, *sorted(inner), num_packs])])),
        "costs": draw(st.none() | costs.map(np.array)),
    }


@settings(deadline=None)
@given(plan=plans(), step=st.integers(0, 100))
@pytest.mark.parametrize("world", WORLDS)
def test_every_world_trains_on_the_same_packs(world: int, plan: dict, step: int):
    alone = step_packs(step, **plan)
    ranks = [step_packs(step, **plan, rank=rank, world=world) for rank in range(world)]
    assert len(alone) == plan["packs_per_step"]
    assert sorted(pack for packs in ranks for pack in packs) == sorted(alone)
    shares = {len(packs) for packs in ranks}
    assert max(shares) - min(shares) <= 1
    assert len(shares) == 1 or plan["packs_per_step"] % world


@settings(deadline=None)
@given(plan=plans(), epochs=st.integers(1, 4))
def test_each_epoch_sees_every_pack_once(plan: dict, epochs: int):
    num_packs, per_step = plan["num_packs"], plan["packs_per_step"]
    num_steps = num_steps_for(epochs, num_packs=num_packs, packs_per_step=per_step)
    row = packs_between(0, num_steps * per_step, num_packs, plan["seed"], plan["blocks"]).tolist()
    for epoch in range(epochs):
        assert sorted(row[epoch * num_packs : (epoch + 1) * num_packs]) == list(range(num_packs))
    assert 0 <= len(row) - epochs * num_packs < per_step
    for step in range(num_steps):
        assert sorted(step_packs(step, **plan)) == sorted(row[step * per_step : (step + 1) * per_step])


@settings(deadline=None)
@given(plan=plans(), step=st.integers(0, 50), others=st.lists(st.integers(0, 50), max_size=5))
def test_a_step_depends_on_nothing_before_it(plan: dict, step: int, others: list[int]):
    first = step_packs(step, **plan)
    for other in others:
        step_packs(other, **plan)
    order._permutation.cache_clear()
    assert step_packs(step, **plan) == first


@settings(deadline=None)
@given(sizes=st.lists(st.integers(0, 6), min_size=1, max_size=6).filter(any), seed=st.integers(0, 5))
def test_a_block_is_read_to_its_end_before_the_next(sizes: list[int], seed: int):
    bounds = np.cumsum([0, *sizes])
    packs = permutation(1, int(bounds[-1]), seed, bounds)
    blocks = np.searchsorted(bounds, packs, side="right") - 1
    assert np.count_nonzero(np.diff(blocks)) == sum(size > 0 for size in sizes) - 1


def test_blocks_and_what_is_in_them_are_shuffled():
    bounds = np.arange(0, 1001, 50)
    first, second = (permutation(epoch, 1000, 0, bounds) for epoch in range(2))
    assert first[::50].tolist() != sorted(first[::50].tolist())
    assert (first[::50] // 50).tolist() != (second[::50] // 50).tolist()
    assert not any(np.array_equal(np.sort(part), part) for part in first.reshape(20, 50))


def test_epochs_and_seeds_differ():
    orders = {tuple(permutation(epoch, 100, seed).tolist()) for epoch in range(3) for seed in range(3)}
    assert len(orders) == 9


def test_order_is_this_one_forever():
    """Golden values: another order under the same seed would break every resume."""
    assert permutation(0, 8, 0).tolist() == [3, 2, 1, 6, 0, 7, 4, 5]
    assert permutation(0, 8, 0, np.array([0, 3, 5, 8])).tolist() == [3, 4, 2, 1, 0, 6, 7, 5]
    costs = np.array([5.0, 1, 1, 9, 2, 2, 7, 3])
    size = {"num_packs": 8, "packs_per_step": 8, "seed": 0, "costs": costs}
    assert step_packs(0, **size) == (3, 6, 0, 7, 4, 5, 2, 1)
    assert [step_packs(0, **size, rank=rank, world=2) for rank in range(2)] == [(3, 7, 4, 1), (6, 0, 5, 2)]


def slot_loads(costs: np.ndarray, ranks: list[tuple[int, ...]], packs_per_batch: int) -> np.ndarray:
    """Cost of each micro-batch, [ranks, slots]."""
    return np.array([costs[list(packs)].reshape(-1, packs_per_batch).sum(axis=1) for packs in ranks])


@given(seed=st.integers(0, 999), world=st.sampled_from([2, 3, 4, 8]), turns=st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_no_dealing_waits_less_at_one_pack_a_micro_batch(seed: int, world: int, turns: int):
    """All ranks wait for the dearest pack of each turn, and neighbours in cost make the sum of those least."""
    packs_per_step = world * turns
    costs = np.random.default_rng(seed).lognormal(0, 1, packs_per_step)
    size = {"num_packs": packs_per_step, "packs_per_step": packs_per_step, "seed": seed}
    ours = [step_packs(0, **size, costs=costs, rank=rank, world=world) for rank in range(world)]
    row = step_packs(0, **size)
    plain = [row[rank::world] for rank in range(world)]
    assert slot_loads(costs, ours, 1).max(axis=0).sum() <= slot_loads(costs, plain, 1).max(axis=0).sum() + 1e-9


@pytest.mark.parametrize("packs_per_batch", [2, 3, 4])
def test_micro_batches_of_several_packs_are_evener_too(packs_per_batch: int):
    """Over 200 drawn steps of 8 ranks: time lost to the dearest micro-batch of each turn, against dealing in turn."""
    world, rng, lost = 8, np.random.default_rng(0), np.zeros(2)
    size = {"num_packs": 8 * 12, "packs_per_step": 8 * 12, "seed": 0}
    row = step_packs(0, **size)
    for _ in range(200):
        costs = rng.lognormal(0, 1, 8 * 12)
        ours = [step_packs(0, **size, costs=costs, rank=rank, world=world) for rank in range(world)]
        for number, ranks in enumerate((ours, [row[rank::world] for rank in range(world)])):
            lost[number] += slot_loads(costs, ranks, packs_per_batch).max(axis=0).sum() - costs.sum() / world
    assert lost[0] < lost[1] / 3
