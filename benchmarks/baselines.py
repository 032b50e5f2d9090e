"""Other ways to fill packs, to compare with: none of them is in the product.

Each takes lengths int [n] and a capacity and returns int64 [n], the pack of each document, -1 where it fits none.
"""

from bisect import bisect_left

import numpy as np

NOT_PLACED = -1


def summed_first_fit(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """First-fit decreasing as Open-Qwen2VL's packer does it: for every document the bins are looked at in turn and the
    contents of each summed again, O(n^2). It packs one tar of at most ten thousand at a time, so it gets away."""
    packs = np.full(len(lengths), NOT_PLACED, dtype=np.int64)
    bins: list[list[int]] = []
    for document in sorted(range(len(lengths)), key=lambda one: -lengths[one]):
        length = int(lengths[document])
        if length > capacity:
            continue
        for number, contents in enumerate(bins):
            if sum(contents) + length <= capacity:
                contents.append(length)
                packs[document] = number
                break
        else:
            packs[document] = len(bins)
            bins.append([length])
    return packs


def first_fit_decreasing(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """The textbook loop, O(n x packs): longest first, each into the first pack with room."""
    packs = np.full(len(lengths), NOT_PLACED, dtype=np.int64)
    left = np.empty(0, dtype=np.int64)
    for document in np.argsort(-np.asarray(lengths), kind="stable"):
        if lengths[document] > capacity:
            continue
        roomy = left >= lengths[document]
        if not roomy.any():
            left, roomy = np.append(left, capacity), np.append(roomy, True)
        packs[document] = roomy.argmax()
        left[packs[document]] -= lengths[document]
    return packs


def global_best_fit(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """Best-fit decreasing by the textbook, one document at a time: the tightest of the rooms left, kept sorted."""
    packs = np.full(len(lengths), NOT_PLACED, dtype=np.int64)
    rooms: list[int] = []  # the different numbers of tokens left, sorted
    open_packs: dict[int, list[int]] = {}
    num_packs = 0
    sizes = lengths.tolist()
    for document in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        length = sizes[document]
        if length > capacity:
            continue
        place = bisect_left(rooms, length)
        if place == len(rooms):
            pack, room, num_packs = num_packs, capacity, num_packs + 1
        else:
            room = rooms[place]
            pack = open_packs[room].pop()
            if not open_packs[room]:
                del open_packs[room], rooms[place]
        packs[document] = pack
        if room > length:
            if room - length not in open_packs:
                rooms.insert(bisect_left(rooms, room - length), room - length)
            open_packs.setdefault(room - length, []).append(pack)
    return packs


def next_fit(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """In the order given, a new pack whenever the current one is full: what a streaming packer does."""
    packs = np.full(len(lengths), NOT_PLACED, dtype=np.int64)
    pack, left = -1, 0
    for document, length in enumerate(lengths.tolist()):
        if length > capacity:
            continue
        if length > left:
            pack, left = pack + 1, capacity
        packs[document] = pack
        left -= length
    return packs


def no_packing(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """Every document padded to the capacity: a pack of its own."""
    fits = np.asarray(lengths) <= capacity
    return np.where(fits, np.cumsum(fits) - 1, NOT_PLACED)
