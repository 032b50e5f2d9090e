"""Which documents share a pack: best-fit decreasing (Johnson 1973) over groups of equal documents.

Deterministic. Every function returns int32 [n]: the pack of each document, -1 for one that is larger than a pack.
"""

from bisect import bisect_left, insort
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

NOT_PLACED = -1
FEW = 32  # documents of one size below which array operations cost more than a loop


@dataclass
class _OpenPacks:
    """Packs with room, by what is left of them: (images left) -> (tokens left) -> packs.

    A bit set over tokens left, one for each number of images left, finds the tightest pack in one shift.
    """

    packs: dict[tuple[int, int], list[np.ndarray]] = field(default_factory=dict)
    bits: dict[int, int] = field(default_factory=dict)

    def add(self, tokens: int, images: int, packs: np.ndarray) -> None:
        if tokens > 0 and len(packs):
            self.packs.setdefault((tokens, images), []).append(packs)
            self.bits[images] = self.bits.get(images, 0) | 1 << tokens

    def take(self, tokens: int, images: int) -> np.ndarray:
        self.bits[images] ^= 1 << tokens
        found = self.packs.pop((tokens, images))
        return found[0] if len(found) == 1 else np.concatenate(found)

    def tightest(self, tokens: int, images: int) -> tuple[int, int] | None:
        """The least (tokens left, images left) that is at least as large in both; None where no pack has the room."""
        best = None
        for left, bits in self.bits.items():
            fitting = bits >> tokens
            if left >= images and fitting:
                found = (tokens + (fitting & -fitting).bit_length() - 1, left)
                best = found if best is None or found < best else best
        return best


def best_fit_decreasing(
    lengths: np.ndarray,
    capacity: int,
    num_images: np.ndarray | None = None,
    max_images: int | None = None,
    order: np.ndarray | None = None,
) -> np.ndarray:
    """Longest document first, each into the fullest pack that still has room for it (tokens, and images if limited).

    order: int [n], in which documents of one size are taken; None takes them as they come.

    Documents of one size go together: a pack that is the tightest fit for one of them stays the tightest for the next,
    so q = room // length of them enter at once, and a whole group of equally full packs is filled by array operations.
    Time O(n + sizes x capacity / 64) after a radix sort, against O(n x packs) of the textbook loop. Memory: 40 bytes
    a document at most beside what is given. Where hardly two documents are of one size they go one by one, in
    O(n log n).
    """
    lengths = np.asarray(lengths)
    limited = num_images is not None and max_images is not None
    images = num_images if limited and num_images is not None else None
    limit = max_images if limited and max_images is not None else 0
    packs = np.full(len(lengths), NOT_PLACED, dtype=np.int32)
    order = decreasing([lengths] if images is None else [lengths, images], order)
    edges = _edges(order, lengths, images)
    if images is None and len(edges) * FEW > len(lengths):
        packs[order] = _one_by_one(lengths[order].tolist(), capacity)
        return packs
    open_packs, num_packs = _OpenPacks(), 0
    for start, end in pairwise(edges.tolist()):
        members = order[start:end]
        size, count = int(lengths[members[0]]), int(images[members[0]]) if images is not None else 0
        if size > capacity or count > limit:
            continue
        members = _fill_open(packs, members, size, count, open_packs)
        num_packs = _fill_new(packs, members, size, count, open_packs, num_packs, (capacity, limit))
    return packs


def _edges(order: np.ndarray, lengths: np.ndarray, images: np.ndarray | None) -> np.ndarray:
    """Where documents of one size begin in the order, and its end: int64 [sizes + 1]."""
    changes = np.ones(len(order), bool)
    changes[1:] = np.diff(lengths[order]) != 0
    if images is not None:
        changes[1:] |= np.diff(images[order]) != 0
    return np.append(np.flatnonzero(changes), len(order))


def _one_by_one(lengths: list[int], capacity: int) -> list[int]:
    """The pack of each document. lengths: decreasing. The rooms that packs have left are kept sorted."""
    least = lengths[-1] if lengths else 0
    rooms: list[int] = []
    open_packs: dict[int, list[int]] = {}  # by what is left of them
    placed: list[int] = []
    num_packs = 0
    for length in lengths:
        place = bisect_left(rooms, length)
        if place < len(rooms):
            room = rooms[place]
            alike = open_packs[room]
            pack = alike.pop()
            if not alike:
                del rooms[place], open_packs[room]
        elif length <= capacity:
            room, pack, num_packs = capacity, num_packs, num_packs + 1
        else:
            placed.append(NOT_PLACED)
            continue
        placed.append(pack)
        room -= length
        if room >= least:  # else nothing can follow
            if room in open_packs:
                open_packs[room].append(pack)
            else:
                insort(rooms, room)
                open_packs[room] = [pack]
    return placed


def decreasing(keys: list[np.ndarray], order: np.ndarray | None = None) -> np.ndarray:
    """Sorts documents by the first key, then the second ..., greatest first. Returns: int [n].

    From the last key to the first, each sort stable; numpy sorts 16-bit numbers by radix, five times as fast as others.
    """
    order = np.arange(len(keys[0]), dtype=np.int32) if order is None else order
    for key in reversed(keys):
        greatest = int(key.max(initial=0))
        kind = np.uint16 if greatest < 2**16 else np.int64
        falling = (greatest - key).astype(kind)[order]
        order = order[np.argsort(falling, kind="stable")]
    return order


def _fits(tokens_left: int, images_left: int, size: int, count: int) -> int:
    """How many documents of this size one pack with this room takes."""
    if size == 0:
        raise ValueError("a document of 0 tokens cannot be packed; encode refuses such samples.")
    return min(tokens_left // size, images_left // count) if count else tokens_left // size


def _fill_open(packs: np.ndarray, members: np.ndarray, size: int, count: int, open_packs: _OpenPacks) -> np.ndarray:
    """Places documents of one size into open packs, tightest first. Returns those that found no room."""
    while len(members) and (room := open_packs.tightest(size, count)):
        group = open_packs.take(*room)
        members = _place(packs, members, size, count, open_packs, group, room)
    return members


def _fill_new(
    packs: np.ndarray,
    members: np.ndarray,
    size: int,
    count: int,
    open_packs: _OpenPacks,
    num_packs: int,
    room: tuple[int, int],
) -> int:
    """Opens as many packs as the documents of one size need. Returns the number of packs then."""
    num_new = -(-len(members) // _fits(*room, size, count))
    group = np.arange(num_packs, num_packs + num_new, dtype=np.int32)
    _place(packs, members, size, count, open_packs, group, room)
    return num_packs + num_new


def _place(
    packs: np.ndarray,
    members: np.ndarray,
    size: int,
    count: int,
    open_packs: _OpenPacks,
    group: np.ndarray,
    room: tuple[int, int],
) -> np.ndarray:
    """Fills a group of packs with equal room, one after the other, and files them by the room they have left."""
    tokens, images = room
    each = _fits(tokens, images, size, count)
    num_full, rest = divmod(min(len(members), each * len(group)), each)
    packs[members[: num_full * each]] = np.repeat(group[:num_full], each)
    open_packs.add(tokens - each * size, images - each * count, group[:num_full])
    if rest:
        packs[members[num_full * each : num_full * each + rest]] = group[num_full]
        open_packs.add(tokens - rest * size, images - rest * count, group[num_full : num_full + 1])
    open_packs.add(tokens, images, group[num_full + (rest > 0) :])
    return members[num_full * each + rest :]


def fill(lengths: np.ndarray, packs: np.ndarray, capacity: int) -> float:
    """Share of the packs' positions that documents take, 0..1; 0 where there is no pack."""
    num_packs = int(packs.max(initial=NOT_PLACED)) + 1
    return float(np.asarray(lengths)[packs >= 0].sum() / (num_packs * capacity)) if num_packs else 0.0
