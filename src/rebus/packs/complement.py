"""Packs that end exactly full. Best-fit decreasing takes the long documents first, so alike lengths meet in a pack and
what they leave is too small for anybody. Here each pack takes the longest document left, then documents as they come,
and its last ones are looked up: lengths that add up to just the room that is left.

Besides fuller packs, this gives every pack a like mix of long and short documents, and so a like attention cost.
"""

import numpy as np

from rebus.packs.binning import NOT_PLACED

NUM_TRIED = 16  # documents tried as the third last before a pack is left short
NUM_SHORT = 64  # tokens that a pack may end short of before it is filled by length alone


class _Remaining:
    """Documents not yet in a pack. Bit l of `bits` says that one of length l is left; `mirrored` holds the same bits
    from the other end, so that one shift and one AND find every pair of lengths with a given sum."""

    def __init__(self, lengths: np.ndarray, capacity: int) -> None:
        self.capacity = capacity
        self.lengths: list[int] = lengths.tolist()
        self.queue = np.flatnonzero(lengths <= capacity)[::-1].tolist()
        self.hand: list[int] = []
        self.taken = bytearray(len(self.lengths))
        self.members: list[list[int]] = [[] for _ in range(capacity + 1)]
        for document in self.queue:
            self.members[self.lengths[document]].append(document)
        self.num_left = [len(members) for members in self.members]
        self.bits = sum(1 << length for length, number in enumerate(self.num_left) if number)
        self.mirrored = sum(1 << capacity - length for length, number in enumerate(self.num_left) if number)
        self.num_documents, self.num_tokens = len(self.queue), int(lengths[lengths <= capacity].sum())

    def take(self, length: int, document: int | None = None) -> int:
        """Takes a document of this length, which must be left; the one named, or any. Returns it."""
        members = self.members[length]
        while document is None:
            candidate = members.pop()
            document = None if self.taken[candidate] else candidate
        self.taken[document] = 1
        self.num_documents -= 1
        self.num_tokens -= length
        self.num_left[length] -= 1
        if not self.num_left[length]:
            self.bits ^= 1 << length
            self.mirrored ^= 1 << self.capacity - length
        return document

    def refill(self) -> None:
        """Fills the hand with the next documents in the order given."""
        self.hand = [document for document in self.hand if not self.taken[document]]
        while len(self.hand) < NUM_TRIED and self.queue:
            document = self.queue.pop()
            if not self.taken[document]:
                self.hand.append(document)

    def longest(self, room: int) -> int:
        """The greatest length left that is at most `room`; 0 where there is none."""
        return max(0, (self.bits & ((2 << room) - 1)).bit_length() - 1)

    def pair(self, total: int) -> tuple[int, int] | None:
        """Two lengths left that add up to `total`, as alike as can be, so that rare ones are kept for later."""
        half = (total + 1) // 2
        both = (self.bits & (self.mirrored >> self.capacity - total)) >> half
        while both:
            greater = half + (both & -both).bit_length() - 1
            if greater * 2 != total or self.num_left[greater] > 1:
                return greater, total - greater
            both &= both - 1
        return None


def fill_exactly(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """Takes lengths int [n], each at least 1, in an order without meaning (shuffle them first).

    Returns: int32 [n], the pack of each document, NOT_PLACED for one that is longer than a pack. Deterministic.
    One to three microseconds a document.
    """
    remaining = _Remaining(np.asarray(lengths), capacity)
    packs = np.full(len(lengths), NOT_PLACED, dtype=np.int32)
    pack = 0
    while remaining.num_documents:
        packs[_fill_pack(remaining)] = pack
        pack += 1
    return packs


def _fill_pack(remaining: _Remaining) -> list[int]:
    """The documents of one pack."""
    mean = remaining.num_tokens / remaining.num_documents
    room = remaining.capacity
    placed: list[int] = []

    def place(length: int, document: int | None = None) -> None:
        nonlocal room
        placed.append(remaining.take(length, document))
        room -= length

    place(remaining.longest(room))
    remaining.refill()
    # Three or so documents before the end, the lengths that are left offer many exact sums; sooner would cost time.
    while room > 3.5 * mean and remaining.hand:
        document = remaining.hand.pop()
        length = remaining.lengths[document]
        if not remaining.taken[document] and length <= room:
            place(length, document)
        if not remaining.hand:
            remaining.refill()
    remaining.refill()
    while room and (closing := _closing(remaining, room)):
        for length in closing:
            place(length)
    return placed


def _closing(remaining: _Remaining, room: int) -> tuple[int, ...]:
    """One, two or three lengths that fill the room exactly; else what leaves little of it; empty if nothing fits."""
    exact = _exact(remaining, room) or _triple(remaining, room)
    if exact:
        return exact
    for short in range(1, min(NUM_SHORT, room)):
        nearly = _exact(remaining, room - short)
        if nearly:
            return nearly
    longest = remaining.longest(room)
    return (longest,) if longest else ()


def _exact(remaining: _Remaining, total: int) -> tuple[int, ...]:
    return (total,) if remaining.num_left[total] else remaining.pair(total) or ()


def _triple(remaining: _Remaining, room: int) -> tuple[int, ...]:
    for document in remaining.hand:
        length = remaining.lengths[document]
        if remaining.taken[document] or length >= room:
            continue
        rest = remaining.pair(room - length)
        if rest and remaining.num_left[length] > rest.count(length):
            return (length, *rest)
    return ()
