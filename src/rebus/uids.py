"""Uids as pairs of 64-bit numbers, DataComp's form, and sets of them as sorted arrays.

A set is a `<u8,<u8` array [N] (f0: the high 64 bits, f1: the low), each uid once, in lexicographic order: what
DataComp's resharder searches by bisection. numpy compares such records one by one, some ten times slower than plain
numbers; so everything here sorts by the high half alone and then mends the few runs in which it is equal.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rebus.errors import DataError

UID = np.dtype("<u8,<u8")
NUM_DIGITS = 32
NUM_AT_ONCE = 1 << 18  # uids turned or merged at once: 8 MB of digits, 4 MB of numbers

_VALUE = np.full(256, 255, dtype=np.uint8)  # of a hexadecimal digit's code
for _digit, _code in enumerate(b"0123456789abcdef"):
    _VALUE[_code] = _VALUE[ord(chr(_code).upper())] = _digit
_PAIRS = np.frombuffer(b"".join(b"%02x" % byte for byte in range(256)), dtype="<u2")  # byte -> its two digits


def uids_as_numbers(uids: Sequence[str] | pa.Array | pa.ChunkedArray) -> NDArray[np.void]:
    """32 hexadecimal digits each -> [N] u8,u8. Raises: DataError that shows the first which is none."""
    strings = uids if isinstance(uids, pa.Array | pa.ChunkedArray) else pa.array(uids, pa.string())
    chunks = strings.chunks if isinstance(strings, pa.ChunkedArray) else [strings]
    numbers, start = np.empty(len(strings), dtype=UID), 0
    for chunk in chunks:
        for first in range(0, len(chunk), NUM_AT_ONCE):
            part = chunk.slice(first, NUM_AT_ONCE)
            numbers[start : start + len(part)] = _parse(part)
            start += len(part)
    return numbers


def _parse(part: pa.Array) -> NDArray[np.void]:
    part = part.cast(pa.large_string())
    lengths = pc.fill_null(pc.binary_length(part), 0).to_numpy(zero_copy_only=False)
    if (lengths != NUM_DIGITS).any():
        raise _no_uid(part, int(np.argmax(lengths != NUM_DIGITS)))
    first = np.frombuffer(part.buffers()[1], dtype=np.int64)[part.offset]
    codes = np.frombuffer(part.buffers()[2], dtype=np.uint8)[first : first + NUM_DIGITS * len(part)]
    digits = _VALUE[codes].reshape(-1, NUM_DIGITS)
    if (digits > 15).any():
        raise _no_uid(part, int(np.argmax((digits > 15).any(axis=1))))
    halves = (digits[:, 0::2] << 4 | digits[:, 1::2]).view(">u8")
    numbers = np.empty(len(part), dtype=UID)
    numbers["f0"], numbers["f1"] = halves[:, 0], halves[:, 1]
    return numbers


def _no_uid(part: pa.Array, row: int) -> DataError:
    return DataError(f"{part[row].as_py()!r} is no uid: {NUM_DIGITS} hexadecimal digits are wanted, 128 bits.")


def uids_as_strings(numbers: NDArray[np.void]) -> pa.Array:
    """[N] u8,u8 -> Arrow strings of 32 hexadecimal digits."""
    halves = np.empty((len(numbers), 2), dtype=">u8")
    halves[:, 0], halves[:, 1] = numbers["f0"], numbers["f1"]
    digits = _PAIRS[halves.view(np.uint8)]
    offsets = np.arange(len(numbers) + 1, dtype=np.int64) * NUM_DIGITS
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(digits))]
    return pa.Array.from_buffers(pa.large_string(), len(numbers), buffers)


def order_of(numbers: NDArray[np.void], *, in_runs: bool = False) -> NDArray[np.int64]:
    """Where each uid of the sorted array stands in `numbers`; equal ones in the order in which they stand.

    Sorts plain numbers: the upper bits of the high half with the place in the lowest ones (24 of 64 for ten million),
    a fourth of the time of an argsort; then mends the runs that these upper bits leave equal, some dozens of uids
    where uids are hashes. in_runs: `numbers` are a few sorted arrays behind one another, so merging is linear.
    """
    num_bits = np.uint64(max(1, (len(numbers) - 1).bit_length()) if len(numbers) else 1)
    packed = numbers["f0"] >> num_bits
    packed <<= num_bits
    packed |= np.arange(len(numbers), dtype=np.uint64)
    packed.sort(kind="stable" if in_runs else None)
    order = (packed & ((np.uint64(1) << num_bits) - np.uint64(1))).astype(np.int64)
    packed >>= num_bits
    _mend(order, packed[1:] == packed[:-1], numbers)
    return order


def _mend(order: NDArray[np.int64], same: NDArray[np.bool_], numbers: NDArray[np.void]) -> None:
    """Sorts, in place, every run of neighbours with the same upper bits that is not in order. same: [N - 1]."""
    pairs = np.flatnonzero(same)
    before, after = take(numbers, order[pairs]), take(numbers, order[pairs + 1])
    is_wrong = before["f0"] > after["f0"]
    is_wrong |= (before["f0"] == after["f0"]) & (before["f1"] > after["f1"])
    if not is_wrong.any():
        return
    run = np.concatenate([[0], np.cumsum(~same)])
    to_sort = np.zeros(run[-1] + 1, dtype=bool)
    to_sort[run[pairs[is_wrong]]] = True
    places = np.flatnonzero(to_sort[run])
    among = order[places]
    order[places] = among[np.lexsort((numbers["f1"][among], numbers["f0"][among]))]


def unique(numbers: NDArray[np.void]) -> NDArray[np.void]:
    """The set of some uids. Costs one pass and no copy where they are a set already."""
    if is_set(numbers):
        return numbers
    ordered = take(numbers, order_of(numbers))
    return take(ordered, is_first(ordered))


def is_set(numbers: NDArray[np.void]) -> bool:
    """Whether every uid is greater than the one before it."""
    before, after = numbers[:-1], numbers[1:]
    doubtful = np.flatnonzero(after["f0"] <= before["f0"])
    before, after = before[doubtful], after[doubtful]
    return bool(((after["f0"] == before["f0"]) & (after["f1"] > before["f1"])).all())


def is_first(ordered: NDArray[np.void]) -> NDArray[np.bool_]:
    """[N] whether a uid of a sorted array differs from the one before it."""
    first = np.ones(len(ordered), dtype=bool)
    high, low = ordered["f0"], ordered["f1"]
    first[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    return first


def take(numbers: NDArray[np.void], chosen: NDArray) -> NDArray[np.void]:
    """numbers[chosen], places or a mask. As 16-byte numbers: numpy copies records three times slower."""
    return np.ascontiguousarray(numbers).view(np.complex128)[chosen].view(UID)


def places_of(wanted: NDArray[np.void], known: NDArray[np.void]) -> NDArray[np.int64]:
    """[n] where each wanted uid first stands among `known`, -1 where it does not.

    Tables mostly have the order of their index: then each row is its own place, uids that occur twice included.
    """
    if np.array_equal(wanted, known):
        return np.arange(len(wanted))
    both = np.concatenate([known, wanted])
    order = order_of(both)
    starts = is_first(take(both, order))
    first = order[starts][np.cumsum(starts) - 1]  # of each run of equal uids, in which the known ones stand first
    places = np.empty(len(both), dtype=np.int64)
    places[order] = np.where(first < len(known), first, -1)
    return places[len(known) :]


def union(a: NDArray[np.void], b: NDArray[np.void]) -> NDArray[np.void]:
    """Of two sets, as are all below."""
    return np.concatenate([take(merged, is_first(merged)) for merged, _ in _merge(a, b)])


def intersection(a: NDArray[np.void], b: NDArray[np.void]) -> NDArray[np.void]:
    return np.concatenate([take(merged, ~is_first(merged)) for merged, _ in _merge(a, b)])


def minus(a: NDArray[np.void], b: NDArray[np.void]) -> NDArray[np.void]:
    return np.concatenate([take(merged, _is_alone(merged) & of_first) for merged, of_first in _merge(a, b)])


def in_one(a: NDArray[np.void], b: NDArray[np.void]) -> NDArray[np.void]:
    """What is in one of the two and not in both."""
    return np.concatenate([take(merged, _is_alone(merged)) for merged, _ in _merge(a, b)])


def _merge(a: NDArray[np.void], b: NDArray[np.void]) -> Iterator[tuple[NDArray[np.void], NDArray[np.bool_]]]:
    """Both in order, common ones twice, and [n] whether each is of the first; cut where the high half changes, into
    pieces that stay in a processor's cache: four times as fast as ten million at once, and hardly any memory."""
    longer = a if len(a) >= len(b) else b
    highs = longer["f0"][NUM_AT_ONCE::NUM_AT_ONCE].tolist()
    ends = [[*(_place(one, high) for high in highs), len(one)] for one in (a, b)]
    start_a = start_b = 0
    for end_a, end_b in zip(*ends, strict=True):
        both = np.concatenate([a[start_a:end_a], b[start_b:end_b]])
        order = order_of(both, in_runs=True)
        yield take(both, order), order < end_a - start_a
        start_a, start_b = end_a, end_b


def _place(ordered: NDArray[np.void], high: int) -> int:
    """The first place whose high half is not below `high`."""
    halves = ordered["f0"]
    return bisect_left(range(len(ordered)), high, key=lambda place: int(halves[place]))


def _is_alone(merged: NDArray[np.void]) -> NDArray[np.bool_]:
    alone = is_first(merged)
    alone[:-1] &= alone[1:].copy()
    return alone
