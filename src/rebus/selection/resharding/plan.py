"""Which rows of the input go into which output shard, as arithmetic on the index: known before anything is written, so
that no layout depends on who works, and a killed run goes on with the same bytes.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rebus.shards.read import read_index
from rebus.uids import is_first, order_of, take, uids_as_numbers


@dataclass(frozen=True)
class Rows:
    """N rows of indexes. shard: int32 [N], number in a list of shards; row: int32 [N]; uids: [N] u8,u8."""

    shard: NDArray[np.int32]
    row: NDArray[np.int32]
    uids: NDArray[np.void]

    def __len__(self) -> int:
        return len(self.row)


@dataclass(frozen=True)
class Copies:
    """What is written, in its order. place: int64 [M] in Rows; number: int32 [M], the copy's among those of its uid."""

    place: NDArray[np.int64]
    number: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.place)


def read_rows(shards: list[Path]) -> Rows:
    """Every indexed sample of the shards."""
    pieces = [uids_as_numbers(read_index(shard, ["uid"])["uid"]) for shard in shards]
    lengths = [len(piece) for piece in pieces]
    return Rows(
        np.repeat(np.arange(len(shards), dtype=np.int32), lengths),
        np.concatenate([np.arange(length, dtype=np.int32) for length in lengths]),
        np.concatenate(pieces),
    )


def in_order(uids: NDArray[np.void]) -> NDArray[np.void]:
    """Sorted; repeated ones stay repeated."""
    return take(uids, order_of(uids))


def group_uids(uids: NDArray[np.void]) -> NDArray[np.int64]:
    """The same number for the same uid, int64 [N], in the order of uids."""
    order = order_of(uids)
    groups = np.empty(len(uids), np.int64)
    groups[order] = np.cumsum(is_first(take(uids, order))) - 1
    return groups


def match(subset: NDArray[np.void], uids: NDArray[np.void]) -> tuple[NDArray[np.int64], NDArray[np.void]]:
    """(how often the subset names each of the N uids, int64 [N]; its uids that are not among them, each once)."""
    groups = group_uids(np.concatenate([subset, uids]))
    named, found = groups[: len(subset)], groups[len(subset) :]
    counts = np.bincount(named, minlength=int(groups.max(initial=-1)) + 1)
    is_there = np.zeros(len(counts), bool)
    is_there[found] = True
    _, first = np.unique(named, return_index=True)
    return counts[found], subset[first[~is_there[named[first]]]]


def copy_rows(rows: Rows, times: NDArray[np.int64]) -> Copies:
    """Every row as often as wanted, copies side by side. Copies count on over all rows of one uid: samples that share
    one would else share a name."""
    place = np.repeat(np.arange(len(rows)), times)
    groups = group_uids(rows.uids[place])
    order = np.argsort(groups, kind="stable")
    ordered = groups[order]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])) if len(place) else np.empty(0, np.int64)
    number = np.empty(len(place), np.int32)
    number[order] = np.arange(len(place)) - np.repeat(starts, np.diff(np.append(starts, len(place))))
    return Copies(place, number)


def shuffle(copies: Copies, size: int | Literal["all"], seed: int) -> Copies:
    """A buffer of `size` lets a sample go at a random one of the `size` places that follow its own; here each draws its
    delay at once, so that no loop runs over samples. None leaves its place by more than `size`. `all`: anywhere."""
    if not size:
        return copies
    draws = np.random.PCG64([seed, 1]).random_raw(len(copies)) >> np.uint64(11)  # 53 bits: exact as float64
    delays = draws.astype(np.float64) * 2.0**-53
    order = np.argsort(delays if size == "all" else np.arange(len(copies)) + delays * size, kind="stable")
    return Copies(copies.place[order], copies.number[order])


@dataclass(frozen=True)
class Piece:
    """What goes into output shard `number`. shard, row, copy: int32 [n], in their order in it."""

    number: int
    shard: NDArray[np.int32]
    row: NDArray[np.int32]
    copy: NDArray[np.int32]


def cut_pieces(rows: Rows, copies: Copies, size: int) -> list[Piece]:
    """Output shard i holds copies [i * size, (i + 1) * size)."""
    parts = [slice(number * size, (number + 1) * size) for number in range(math.ceil(len(copies) / size))]
    return [
        Piece(number, rows.shard[copies.place[part]], rows.row[copies.place[part]], copies.number[part])
        for number, part in enumerate(parts)
    ]
