"""What goes where, as pure arithmetic, against Python's own counting."""

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rebus.selection.resharding.plan import Copies, Rows, copy_rows, match, shuffle

pairs = st.tuples(st.integers(0, 3), st.integers(0, 3))  # few, so that both halves collide


@given(subset=st.lists(pairs, max_size=12), uids=st.lists(pairs, max_size=12))
def test_match_counts_as_a_multiset_does(subset: list, uids: list):
    found, missing = match(np.array(subset, dtype="<u8,<u8"), np.array(uids, dtype="<u8,<u8"))
    counts = Counter(subset)
    assert found.tolist() == [counts[uid] for uid in uids]
    assert [tuple(uid) for uid in missing.tolist()] == sorted(set(subset) - set(uids))


@given(uids=st.lists(st.tuples(pairs, st.integers(0, 3)), max_size=12))
def test_copies_of_a_uid_count_on(uids: list):
    own = np.array([uid for uid, _ in uids], dtype="<u8,<u8")
    rows = Rows(np.zeros(len(uids), np.int32), np.arange(len(uids), dtype=np.int32), own)
    found = copy_rows(rows, np.array([times for _, times in uids], dtype=np.int64))
    expected = [place for place, (_, times) in enumerate(uids) for _ in range(times)]
    assert found.place.tolist() == expected
    seen: Counter = Counter()
    for place, number in zip(expected, found.number.tolist(), strict=True):
        assert number == seen[uids[place][0]]
        seen[uids[place][0]] += 1


@given(number=st.integers(0, 200), size=st.integers(1, 50), seed=st.integers(0, 5))
def test_a_buffered_shuffle_moves_nothing_far(number: int, size: int, seed: int):
    before = Copies(np.arange(number), np.zeros(number, np.int32))
    after = shuffle(before, size, seed).place
    assert sorted(after.tolist()) == list(range(number))
    assert (np.abs(after - np.arange(number)) <= size).all()
    assert number < 20 or size < 5 or not np.array_equal(after, before.place)
