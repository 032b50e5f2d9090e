"""Order is arithmetic: which packs a step trains on is a pure function of (plan's size, seed, step, rank, world).

All epochs form one endless row of packs, each epoch a seeded permutation; step n takes the n-th stretch of
`packs_per_step`. Resuming at another step, or with another number of ranks, needs no state.
"""

import math
from functools import lru_cache

import numpy as np


def step_packs(
    step: int,
    *,
    num_packs: int,
    packs_per_step: int,
    seed: int,
    rank: int = 0,
    world: int = 1,
    blocks: np.ndarray | None = None,
    costs: np.ndarray | None = None,
) -> tuple[int, ...]:
    """The packs that `rank` of `world` trains on at `step` (from 0), in the order that it trains on them.

    An epoch's last stretch is filled up from the next epoch, so every step has `packs_per_step` packs. They are dealt
    as `deal` says. blocks, costs: of the plan (int64 [B + 1], float64 [num_packs]); None: one block, equal costs.
    """
    if num_packs < 1 or packs_per_step < 1:
        raise ValueError(f"num_packs = {num_packs} and packs_per_step = {packs_per_step} must both be at least 1.")
    first = step * packs_per_step
    packs = packs_between(first, first + packs_per_step, num_packs, seed, blocks)
    mine = deal(costs[packs] if costs is not None else np.zeros(len(packs)), rank, world)
    return tuple(packs[mine].tolist())


def deal(costs: np.ndarray, rank: int, world: int) -> np.ndarray:
    """Which of a step's packs a rank gets, int64: the dearest first, in a snake (0, 1, 2, 2, 1, 0, 0, 1, ...).

    So the n-th packs of all ranks are neighbours in cost, and no rank waits long for another; a rank that gets the
    dearer of one turn gets the cheaper of the next, which evens out micro-batches of several packs. Equal costs keep
    their places.
    """
    order = np.argsort(-np.asarray(costs), kind="stable")
    turns = np.arange(-(-len(order) // world))
    places = turns * world + np.where(turns % 2, world - 1 - rank, rank)
    return order[places[places < len(order)]]


def num_steps_for(epochs: float, *, num_packs: int, packs_per_step: int) -> int:
    """Steps that see every pack `epochs` times; the last one may go on into the next epoch."""
    return max(1, math.ceil(epochs * num_packs / packs_per_step))


def packs_between(first: int, end: int, num_packs: int, seed: int, blocks: np.ndarray | None = None) -> np.ndarray:
    """The packs at places first to end of the endless row, int64."""
    starts = range(first // num_packs * num_packs, end, num_packs)
    rows = ((start, permutation(start // num_packs, num_packs, seed, blocks)) for start in starts)
    return np.concatenate([row[max(0, first - start) : end - start] for start, row in rows])


def permutation(epoch: int, num_packs: int, seed: int, blocks: np.ndarray | None = None) -> np.ndarray:
    """The packs of an epoch in training order, int64 [num_packs]: blocks shuffled, packs shuffled in each block.

    blocks: int64 [B + 1], the bounds of blocks of packs that lie side by side in storage; None: all packs are one.
    """
    bounds = () if blocks is None or len(blocks) < 3 else tuple(np.asarray(blocks).tolist())
    return _permutation(epoch, num_packs, seed, bounds)


@lru_cache(maxsize=4)
def _permutation(epoch: int, num_packs: int, seed: int, bounds: tuple[int, ...]) -> np.ndarray:
    words = _words((seed, epoch), num_packs)
    if not bounds:
        return np.argsort(words, kind="stable")
    shuffled = np.argsort(_words((seed, epoch, 1), len(bounds) - 1), kind="stable")
    places = np.argsort(shuffled, kind="stable")  # of each block in the epoch
    return np.lexsort((words, np.repeat(places, np.diff(bounds))))


def _words(seeds: tuple[int, ...], number: int) -> np.ndarray:
    """PCG64's raw 64-bit words: numpy promises that stream, but not what Generator.permutation makes of it."""
    return np.random.PCG64(list(seeds)).random_raw(number)
