"""Which entries of a list stand in a caption, as whole words in a row: all captions of a shard at once.

The entries are a tree of words, one level a table: (node above, word) -> node. From every word of every caption the
tree is walked down in step, so a list of half a million entries costs no more than a short one.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rebus.errors import DataError
from rebus.selection.texts import plain_words

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Level:
    """keys: sorted int64, node above times the number of words plus the word. entry: which entry ends there, or -1."""

    keys: Rows
    entry: Rows


@dataclass(frozen=True)
class Entries:
    """names: Arrow strings, the entries as plain words, each once. seeds: uint64, of each name, wherever it stands."""

    names: pa.Array
    seeds: NDArray[np.uint64]
    words: pa.Array
    levels: list[Level]


def read_entries(path: Path) -> Entries:
    """One entry a line; those that are the same as plain words are one. Raises: DataError where there is none."""
    if not path.is_file():
        raise DataError(f"no list of entries at {path}. It is a text file, one entry a line.")
    lines = pa.array(path.read_text(encoding="utf-8").splitlines(), pa.string())
    names = sorted(set(plain_words(lines).to_pylist()) - {""})
    if not names:
        raise DataError(f"{path} has no entry: one a line is read.")
    return plant(names)


def plant(names: list[str]) -> Entries:
    """names: plain words, each once."""
    split = pc.split_pattern(pa.array(names, pa.string()), " ")
    lengths = pc.list_value_length(split).to_numpy(zero_copy_only=False)
    coded = split.flatten().dictionary_encode()
    codes, starts = coded.indices.to_numpy(), np.cumsum(lengths) - lengths
    nodes, levels = np.zeros(len(names), dtype=np.int64), []
    for depth in range(int(lengths.max())):
        longer = np.flatnonzero(lengths > depth)
        keys, inverse = np.unique(
            nodes[longer] * len(coded.dictionary) + codes[starts[longer] + depth], return_inverse=True
        )
        nodes[longer] = inverse
        entry = np.full(len(keys), -1, dtype=np.int64)
        ends = np.flatnonzero(lengths == depth + 1)
        entry[nodes[ends]] = ends
        levels.append(Level(keys, entry))
    digests = b"".join(hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names)
    return Entries(
        pa.array(names, pa.string()), np.frombuffer(digests, "<u8").astype(np.uint64), coded.dictionary, levels
    )


def find_entries(entries: Entries, texts: pa.Array) -> tuple[Rows, Rows]:
    """(text, entry) of every entry that stands in a text, each pair once; sorted."""
    split = pc.split_pattern(plain_words(texts), " ")
    codes = pc.fill_null(pc.index_in(split.flatten(), value_set=entries.words), -1).to_numpy(zero_copy_only=False)
    owner = np.repeat(np.arange(len(texts)), pc.list_value_length(split).to_numpy(zero_copy_only=False))
    starts, nodes = np.arange(len(codes)), np.zeros(len(codes), dtype=np.int64)
    found = []
    for depth, level in enumerate(entries.levels):
        inside = starts + depth < len(codes)
        starts, nodes = starts[inside], nodes[inside]
        known = (codes[starts + depth] >= 0) & (owner[starts + depth] == owner[starts])
        starts, nodes = starts[known], nodes[known]
        keys = nodes * len(entries.words) + codes[starts + depth]
        places = np.minimum(np.searchsorted(level.keys, keys), len(level.keys) - 1)
        here = level.keys[places] == keys
        starts, nodes = starts[here], places[here]
        ends = level.entry[nodes] >= 0
        found.append(owner[starts[ends]] * len(entries.names) + level.entry[nodes[ends]])
    pairs = np.unique(np.concatenate(found))
    return pairs // len(entries.names), pairs % len(entries.names)
