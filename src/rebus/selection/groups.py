"""Pairs of near-duplicates -> which sample of each group stays. Arrays all the way: ten million samples, a few rounds.

Samples are numbered by rank: 0 is the one to keep before all others. So what stays follows from the samples alone and
not from the order of the shards.
"""

import numpy as np
from numpy.typing import NDArray

from rebus.errors import ConfigError
from rebus.selection.view import View
from rebus.uids import order_of

Rows = NDArray[np.int64]


def ranked(preference: NDArray[np.float64] | None, uids: NDArray[np.void]) -> Rows:
    """The order [n] in which samples are preferred: the highest value first (no value: last), then the lower uid.

    Of samples that share a uid the earlier row comes first.
    """
    keys = (uids["f1"], uids["f0"])
    if preference is None:
        return np.lexsort(keys)
    return np.lexsort((*keys, np.where(np.isnan(preference), np.inf, -preference)))


def keep_linked(num_samples: int, left: Rows, right: Rows) -> Rows:
    """For each of n samples, the lowest of all that it is linked with over any chain of pairs: its connected component.

    Roots of two linked trees are joined, lower one on top, and trees flattened, until no pair links two trees: a few
    rounds (Shiloach and Vishkin 1982).
    """
    roots = np.arange(num_samples)
    while len(left):
        one, other = roots[left], roots[right]
        apart = one != other
        left, right, one, other = left[apart], right[apart], one[apart], other[apart]
        np.minimum.at(roots, np.maximum(one, other), np.minimum(one, other))
        while True:
            above = roots[roots]
            if np.array_equal(above, roots):
                break
            roots = above
    return roots


def keep_greedily(num_samples: int, left: Rows, right: Rows) -> NDArray[np.bool_]:
    """Which of n samples stay if each is judged in turn and stays unless it is paired with one that did.

    A sample is decided once all lower ones that it is paired with are; all that can be are decided at once (Blelloch
    et al. 2012, Greedy sequential maximal independent set and matching are parallel on average).
    """
    low, high = np.minimum(left, right), np.maximum(left, right)
    kept = np.ones(num_samples, dtype=bool)
    while len(low):
        waits = np.zeros(num_samples, dtype=bool)
        waits[high] = True
        ready = ~waits[low]  # nothing undecided stands before the lower one of the pair: it stays
        kept[high[ready]] = False
        open_pairs = kept[low] & kept[high] & ~ready
        low, high = low[open_pairs], high[open_pairs]
    return kept


def first_of_equals(values: NDArray) -> Rows:
    """For each of n values, the lowest place that holds the same one."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    return first[inverse.ravel()]


def first_of_uids(uids: NDArray[np.void]) -> Rows:
    """The same for uids, [n] u8,u8."""
    order = order_of(uids)
    ordered = uids[order]
    starts = np.ones(len(uids), dtype=bool)
    starts[1:] = (ordered["f0"][1:] != ordered["f0"][:-1]) | (ordered["f1"][1:] != ordered["f1"][:-1])
    first = np.empty(len(uids), dtype=np.int64)
    first[order] = order[starts][np.cumsum(starts) - 1]
    return first


def preferred(view: View, prefer: str | None) -> Rows:
    """Rows of a view, those to keep first in front: the highest value of the column `prefer`, then the lower uid.

    Raises: ConfigError where the column holds words.
    """
    if prefer is None:
        return ranked(None, view.uids)
    values = view.column(prefer)
    if values.dtype == object:
        raise ConfigError(f"`prefer: {prefer}` names a column of words; which to keep is told by a number.")
    return ranked(np.where(view.scored(prefer), values.astype(np.float64), np.nan), view.uids)


def place_in_group(groups: Rows, order: Rows) -> Rows:
    """How many of its group stand before each sample, [n]; nothing is said of rows that `order` leaves out.

    groups: [n] numbers from 0. order: rows.
    """
    by_group = order[np.argsort(groups[order], kind="stable")]
    starts = np.flatnonzero(np.diff(groups[by_group], prepend=-1))
    places = np.zeros(len(groups), dtype=np.int64)
    places[by_group] = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    return places
