"""Contract 4: order is arithmetic. The packs of a step do not depend on the number of ranks, and nothing is stored."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebus.batches.order import num_steps_for, permutation, step_packs

plans = {"num_packs": st.integers(1, 40), "packs_per_step": st.integers(1, 12), "seed": st.integers(0, 9)}


@given(step=st.integers(0, 100), **plans)
@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
def test_every_world_trains_on_the_same_packs(world: int, step: int, num_packs: int, packs_per_step: int, seed: int):
    size = {"num_packs": num_packs, "packs_per_step": packs_per_step, "seed": seed}
    alone = step_packs(step, **size)
    ranks = [step_packs(step, **size, rank=rank, world=world) for rank in range(world)]
    assert len(alone) == packs_per_step
    assert sorted(pack for packs in ranks for pack in packs) == sorted(alone)
    assert all(ranks[i % world][i // world] == pack for i, pack in enumerate(alone))


@given(epochs=st.integers(1, 4), **plans)
def test_each_epoch_sees_every_pack_once(epochs: int, num_packs: int, packs_per_step: int, seed: int):
    size = {"num_packs": num_packs, "packs_per_step": packs_per_step, "seed": seed}
    num_steps = num_steps_for(epochs, num_packs=num_packs, packs_per_step=packs_per_step)
    row = [pack for step in range(num_steps) for pack in step_packs(step, **size)]
    for epoch in range(epochs):
        assert sorted(row[epoch * num_packs : (epoch + 1) * num_packs]) == list(range(num_packs))
    assert 0 <= len(row) - epochs * num_packs < packs_per_step


@given(step=st.integers(0, 50), others=st.lists(st.integers(0, 50), max_size=5), **plans)
def test_a_step_depends_on_nothing_before_it(step, others, num_packs: int, packs_per_step: int, seed: int):
    size = {"num_packs": num_packs, "packs_per_step": packs_per_step, "seed": seed}
    first = step_packs(step, **size)
    for other in others:
        step_packs(other, **size)
    permutation.cache_clear()
    assert step_packs(step, **size) == first


def test_epochs_and_seeds_differ():
    orders = {tuple(permutation(epoch, 100, seed).tolist()) for epoch in range(3) for seed in range(3)}
    assert len(orders) == 9


def test_order_is_this_one_forever():
    """A golden value: another order under the same seed would break every resume."""
    assert permutation(0, 8, 0).tolist() == [3, 2, 1, 6, 0, 7, 4, 5]
