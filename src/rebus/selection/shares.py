"""A budget shared out among groups of samples: each takes its best until its share is full."""

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]


def fill_shares(totals: NDArray, weights: NDArray[np.float64], budget: float) -> NDArray[np.float64]:
    """What each of k groups may take of a budget, in proportion to its weight and never more than its total.

    What a small group leaves goes to the others in proportion, again and again (water-filling).
    """
    shares = np.minimum(np.asarray(totals, dtype=np.float64), 0)
    is_open = np.ones(len(totals), dtype=bool)
    while is_open.any():
        scale = max(budget - shares[~is_open].sum(), 0) / weights[is_open].sum()
        full = is_open & (totals <= weights * scale)
        if not full.any():
            shares[is_open] = weights[is_open] * scale
            break
        shares[full] = totals[full]
        is_open &= ~full
    return shares


def take_within(costs: list[Numbers], weights: NDArray[np.float64], budget: int) -> Numbers:
    """How many samples each of k groups takes, from the front; costs: of each group's samples, in its order.

    The sum is at most `budget`, and no group's next sample would still fit. Each group comes within one sample of its
    share; what is then left, less than one sample of every group, is shared out again until nothing fits.
    """
    ends = [np.concatenate([[0], np.cumsum(cost, dtype=np.int64)]) for cost in costs]
    counts = np.zeros(len(costs), dtype=np.int64)
    while True:
        used = np.array([end[count] for end, count in zip(ends, counts, strict=True)], dtype=np.int64)
        rest = budget - int(used.sum())
        following = [cost[count] if count < len(cost) else rest + 1 for cost, count in zip(costs, counts, strict=True)]
        fits = np.flatnonzero(np.array(following, dtype=np.int64) <= rest)
        if not len(fits):
            return counts
        totals = np.array([ends[group][-1] for group in fits]) - used[fits]
        shares = np.floor(fill_shares(totals, weights[fits], rest)).astype(np.int64)
        reached = [
            np.searchsorted(ends[g], used[g] + share, "right") - 1 for g, share in zip(fits, shares, strict=True)
        ]
        if np.array_equal(
            reached, counts[fits]
        ):  # no share holds one more sample, but the rest does: the largest has it
            reached[int(shares.argmax())] += 1
        counts[fits] = reached
