"""Order is arithmetic: which packs a step trains on is a pure function of (plan's size, seed, step, rank, world).

All epochs form one endless row of packs, each epoch a seeded permutation; step n takes the n-th stretch of
`packs_per_step`. Resuming at another step, or with another number of ranks, needs no state.
"""

import math
from functools import lru_cache

import numpy as np


def step_packs(
    step: int, *, num_packs: int, packs_per_step: int, seed: int, rank: int = 0, world: int = 1
) -> tuple[int, ...]:
    """The packs that `rank` of `world` trains on at `step` (from 0): every world-th of the step's, from `rank` on.

    An epoch's last stretch is filled up from the next epoch, so every step has `packs_per_step` packs.
    """
    if num_packs < 1 or packs_per_step < 1:
        raise ValueError(f"num_packs = {num_packs} and packs_per_step = {packs_per_step} must both be at least 1.")
    first = step * packs_per_step
    places = range(first + rank, first + packs_per_step, world)
    return tuple(pack_at(place, num_packs, seed) for place in places)


def num_steps_for(epochs: float, *, num_packs: int, packs_per_step: int) -> int:
    """Steps that see every pack `epochs` times; the last one may go on into the next epoch."""
    return max(1, math.ceil(epochs * num_packs / packs_per_step))


def pack_at(place: int, num_packs: int, seed: int) -> int:
    """The pack at a place of the endless row."""
    epoch, index = divmod(place, num_packs)
    return int(permutation(epoch, num_packs, seed)[index])


@lru_cache(maxsize=4)
def permutation(epoch: int, num_packs: int, seed: int) -> np.ndarray:
    """The packs of an epoch in training order, int64 [num_packs].

    Made of PCG64's raw 64-bit words: numpy promises that stream, but not what Generator.permutation makes of it.
    """
    words = np.random.PCG64([seed, epoch]).random_raw(num_packs)
    return np.argsort(words, kind="stable")
