"""Which 64-bit hashes differ in no more than a few bits: exact, without comparing all with all.

A hash is cut into distance + agree bands. Two hashes within the distance differ in at most `distance` bands, so they
agree in at least `agree` of them: for every choice of so many bands, only hashes that are equal there are compared
(the permuted tables of Manku et al. 2007, Detecting near-duplicates for web crawling, section 3). More agreeing bands
mean longer keys, so fewer comparisons, and more choices, so more sorting.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray

NUM_BITS = 64
MAX_DISTANCE = 16
"""Where random hashes begin to lie this close: of 64 fair bits, one pair in 26,000 differs in 16 or fewer."""

Hashes = NDArray[np.uint64]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Near:
    """Pairs [p] within a distance: left and right are places in the arrays that were compared, distance in bits."""

    left: Rows
    right: Rows
    distance: NDArray[np.int64]


def near_pairs(hashes: Hashes, distance: int) -> Near:
    """Every pair left < right of [n] hashes that differ in at most `distance` bits, each once, in no order of note.

    Equal hashes are pairs too, so give each once where many are equal: k of them make k (k - 1) / 2 pairs.
    1 million hashes at distance 4: some seconds.
    """
    found = [_within(hashes, chosen, masks, distance) for chosen, masks in _tables(len(hashes), distance)]
    left, right, bits = (np.concatenate(part) for part in zip(*found, strict=True))
    return Near(np.minimum(left, right), np.maximum(left, right), bits)


def near_across(left: Hashes, right: Hashes, distance: int) -> Near:
    """Every pair of one of `left` [n] and one of `right` [m] that differ in at most `distance` bits, each once."""
    found = [_across(left, right, chosen, masks, distance) for chosen, masks in _tables(len(left), distance)]
    return Near(*(np.concatenate(part) for part in zip(*found, strict=True)))


def bits_between(left: Hashes, right: Hashes) -> NDArray[np.int64]:
    """In how many bits each two differ."""
    return np.bitwise_count(left ^ right).astype(np.int64)


def _tables(num_hashes: int, distance: int) -> Iterator[tuple[tuple[int, ...], Hashes]]:
    """(bands that must agree, mask of every band) for each choice of bands."""
    if not 0 <= distance <= MAX_DISTANCE:
        raise ValueError(f"a distance of {distance} bits is none of 0 to {MAX_DISTANCE}")
    agree = min(range(1, 5), key=lambda agree: _cost(num_hashes, distance, agree))
    masks = _bands(distance + agree)
    for chosen in combinations(range(distance + agree), agree):
        yield chosen, masks


def _cost(num_hashes: int, distance: int, agree: int) -> float:
    """Comparisons and steps of sorting that hashes of fair bits would take."""
    num_bands = distance + agree
    bits_of_key = NUM_BITS * agree / num_bands
    sorting = num_hashes * math.log2(num_hashes + 2)
    return math.comb(num_bands, agree) * (sorting + num_hashes**2 / 2 ** (bits_of_key + 1))


def _bands(num_bands: int) -> Hashes:
    """Masks that share the 64 bits out evenly."""
    edges = [NUM_BITS * band // num_bands for band in range(num_bands + 1)]
    return np.array([(1 << stop) - (1 << start) for start, stop in pairwise(edges)], np.uint64)


def _within(hashes: Hashes, chosen: tuple[int, ...], masks: Hashes, distance: int) -> tuple[Rows, Rows, Rows]:
    keys = hashes & np.bitwise_or.reduce(masks[list(chosen)])
    order = np.argsort(keys, kind="stable")
    keys, values = keys[order], hashes[order]
    starts = np.arange(1, len(keys) + 1)
    left, right, bits = _scan(values, values, starts, np.searchsorted(keys, keys, "right"), distance)
    new = _is_first(values[left] ^ values[right], chosen, masks)
    return order[left[new]], order[right[new]], bits[new]


def _across(
    left: Hashes, right: Hashes, chosen: tuple[int, ...], masks: Hashes, distance: int
) -> tuple[Rows, Rows, Rows]:
    mask = np.bitwise_or.reduce(masks[list(chosen)])
    order = np.argsort(right & mask, kind="stable")
    values = right[order]
    starts, stops = (np.searchsorted(values & mask, left & mask, side) for side in ("left", "right"))
    one, other, bits = _scan(left, values, starts, stops, distance)
    new = _is_first(left[one] ^ values[other], chosen, masks)
    return one[new], order[other[new]], bits[new]


def _scan(left: Hashes, right: Hashes, starts: Rows, stops: Rows, distance: int) -> tuple[Rows, Rows, Rows]:
    """Compares each of `left` with right[starts:stops]: all of them at once with their next candidate, then with the
    one after it, for as long as any has one. Memory: that of the hashes and of what is found."""
    order = np.argsort(starts - stops, kind="stable")  # most candidates first: those that have one left are a prefix
    values, shortness, starts = left[order], (starts - stops)[order], starts[order]
    found: list[tuple[Rows, Rows, NDArray[np.uint8]]] = [(np.empty(0, np.int64),) * 2 + (np.empty(0, np.uint8),)]
    for step in range(-int(shortness.min(initial=0))):
        num_live = np.searchsorted(shortness, -step)
        places = starts[:num_live] + step
        bits = np.bitwise_count(values[:num_live] ^ right[places])
        hits = np.flatnonzero(bits <= distance)
        found.append((order[hits], places[hits], bits[hits]))
    one, other, bits = (np.concatenate(part) for part in zip(*found, strict=True))
    return one, other, bits.astype(np.int64)


def _is_first(differences: Hashes, chosen: tuple[int, ...], masks: Hashes) -> NDArray[np.bool_]:
    """Whether these are the first bands in which a pair agrees: so a pair that other choices find too counts once."""
    first = np.ones(len(differences), dtype=bool)
    for band in range(chosen[-1]):
        if band not in chosen:
            first &= (differences & masks[band]) != 0
    return first
