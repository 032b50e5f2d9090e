"""Which documents share a pack. Best-fit decreasing (Johnson 1973) for the plan; two textbook rules to compare with.

Every function takes lengths int [n] and a capacity and returns int64 [n]: the pack of each document, -1 for one that
is longer than a pack. All are deterministic.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

NOT_PLACED = -1


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
        return np.concatenate(self.packs.pop((tokens, images)))

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
    lengths: np.ndarray, capacity: int, num_images: np.ndarray | None = None, max_images: int | None = None
) -> np.ndarray:
    """Longest document first, each into the fullest pack that still has room for it (tokens, and images if limited).

    Documents of one size go together: a pack that is the tightest fit for one of them stays the tightest for the next,
    so q = room // length of them enter at once, and a whole group of equally full packs is filled by array operations.
    Time O(n + sizes x capacity / 64) after a counting sort, against O(n x packs) of the textbook loop.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    limited = num_images is not None and max_images is not None
    images = np.asarray(num_images, dtype=np.int64) if limited else np.zeros_like(lengths)
    limit = max_images if limited and max_images is not None else 0
    packs = np.full(len(lengths), NOT_PLACED, dtype=np.int64)
    open_packs, num_packs = _OpenPacks(), 0
    for size, count, members in _sizes(lengths, images):
        if size > capacity or count > limit:
            continue
        members = _fill_open(packs, members, size, count, open_packs)
        num_packs = _fill_new(packs, members, size, count, open_packs, num_packs, (capacity, limit))
    return packs


def _sizes(lengths: np.ndarray, images: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
    """(length, images, documents of that size), longest first; equal documents keep their order."""
    size = lengths * (int(images.max(initial=0)) + 1) + images
    order = np.argsort(-size, kind="stable")
    edges = np.flatnonzero(np.diff(size[order])) + 1
    for members in np.split(order, edges) if len(order) else ():
        yield int(lengths[members[0]]), int(images[members[0]]), members


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
    _place(packs, members, size, count, open_packs, np.arange(num_packs, num_packs + num_new), room)
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


def first_fit_decreasing(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """The textbook loop, O(n x packs): longest first, each into the first pack with room. For comparison."""
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


def next_fit(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """In the order given, a new pack whenever the current one is full: what a streaming packer does. For comparison."""
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


def fill(lengths: np.ndarray, packs: np.ndarray, capacity: int) -> float:
    """Share of the packs' positions that documents take, 0..1; 0 where there is no pack."""
    num_packs = int(packs.max(initial=NOT_PLACED)) + 1
    return float(np.asarray(lengths)[packs >= 0].sum() / (num_packs * capacity)) if num_packs else 0.0
