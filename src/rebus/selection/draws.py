"""Draws that follow from uids: the same sample has the same luck in every pool, in any order, in every run."""

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.uint64]


def draw(uids: NDArray[np.void], seeds: Numbers | int) -> NDArray[np.float64]:
    """[n] numbers in [0, 1), even and independent for different uids or seeds. seeds: one, or one for each uid."""
    mixed = _mix(_mix(_mix(np.asarray(seeds, dtype=np.uint64)) ^ uids["f0"]) ^ uids["f1"])
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def drawn_order(uids: NDArray[np.void], seed: int) -> NDArray[np.int64]:
    """Rows in an order that `seed` draws; equal uids in the order in which they stand."""
    return np.lexsort((uids["f1"], uids["f0"], draw(uids, seed)))


def _mix(values: Numbers) -> Numbers:
    """The finaliser of SplitMix64 (Steele et al. 2014, Fast splittable pseudorandom number generators): every bit of
    the result depends on every bit of the value. Wraps around 2^64, as it must."""
    values = np.atleast_1d(values) + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
