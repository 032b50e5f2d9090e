"""Copies of a document that met in one pack are parted again: a pack should not say the same thing twice."""

import numpy as np

NUM_TRIED = 64  # documents of the same size that are tried before a copy stays where it is


def separate_copies(document: np.ndarray, packs: np.ndarray, sizes: tuple[np.ndarray, ...]) -> np.ndarray:
    """Exchanges a copy that shares a pack with another for a document of the same size in another pack.

    document: int [m], the same number for every copy, in ascending order. packs: int32 [m]. sizes: int [m] each
    (tokens, images ...). Returns the packs, changed in place; no pack changes its load.
    """
    order = np.argsort(packs, kind="stable")
    doubles = order[1:][(np.diff(document[order]) == 0) & (np.diff(packs[order]) == 0)]
    if not len(doubles):
        return packs
    contents = _Contents(document[order], packs[order])
    alike, starts, group = _groups(sizes)
    for one in doubles.tolist():
        members = alike[starts[group[one]] : starts[group[one] + 1]]
        first = int(np.searchsorted(members, one))  # those that follow it, so that not all try the same few
        for other in np.take(members, range(first + 1, first + 1 + min(NUM_TRIED, len(members))), mode="wrap").tolist():
            if contents.exchange(int(document[one]), int(packs[one]), int(document[other]), int(packs[other])):
                packs[one], packs[other] = packs[other], packs[one]
                break
    return packs


def _groups(sizes: tuple[np.ndarray, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(documents sorted by size, where each size begins and the last ends, the size's number of each document)."""
    order = np.lexsort(sizes)
    changes = np.zeros(len(order), bool)
    for size in sizes:
        changes[1:] |= np.diff(size[order]) != 0
    group = np.empty(len(order), np.int64)
    group[order] = np.cumsum(changes)
    return order, np.append(np.flatnonzero(np.append(True, changes[1:])), len(order)), group


class _Contents:
    """How often each document is in each pack that was looked at. Made of both columns, sorted by pack."""

    def __init__(self, document: np.ndarray, packs: np.ndarray) -> None:
        self.document, self.packs = document, packs
        self.seen: dict[int, list[int]] = {}

    def of(self, pack: int) -> list[int]:
        if pack not in self.seen:
            bounds = np.array((pack, pack + 1), self.packs.dtype)  # of another type, numpy would copy all packs first
            start, end = np.searchsorted(self.packs, bounds)
            self.seen[pack] = self.document[start:end].tolist()
        return self.seen[pack]

    def exchange(self, one: int, home: int, other: int, away: int) -> bool:
        """Swaps two documents of two packs, if then neither is there twice."""
        if home == away or one in self.of(away) or other in self.of(home):
            return False
        self.of(home)[self.of(home).index(one)] = other
        self.of(away)[self.of(away).index(other)] = one
        return True
