"""Pools made of columns, without shards: what a rule sees, for rules that read nothing else."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from rebus.selection.pool import Column, Pool
from rebus.selection.view import View
from rebus.uids import UID


def numbered_uids(values) -> np.ndarray:
    """Whole numbers below 2^64 as uids."""
    uids = np.zeros(len(values), dtype=UID)
    uids["f1"] = values
    return uids


def make_column(values) -> Column:
    """None is no value. Words, uint64 arrays or numbers."""
    values = list(values)
    scored = np.array([value is not None for value in values], dtype=bool)
    if any(isinstance(value, str) for value in values):
        words = sorted({value for value in values if value is not None})
        known = {word: number for number, word in enumerate(words)}
        codes = np.array([known.get(value, len(words)) for value in values], dtype=np.int32)
        return Column(codes, scored, np.array([*words, None], dtype=object))
    if all(isinstance(value, np.uint64 | None) for value in values):
        return Column(np.array([value or 0 for value in values], dtype=np.uint64), scored)
    return Column(np.array([np.nan if value is None else value for value in values], dtype=np.float64), scored)


def make_view(num_samples: int, *, uids=None, shards=None, tars=("00000.tar",), **columns) -> View:
    """A view of a whole pool. uids: whole numbers, by default those of the rows. columns: as make_column takes them,
    `__` for a dot in a name; num_images is 1 and text_chars 40 unless given."""
    columns = {"num_images": [1] * num_samples, "text_chars": [40] * num_samples} | columns
    pool = Pool(
        tars=[Path(tar) for tar in tars],
        scores=None,
        shard=np.array(shards if shards is not None else [0] * num_samples, dtype=np.int64),
        row=np.arange(num_samples),
        keys=pa.chunked_array([pa.array([str(number) for number in range(num_samples)])]),
        uids=numbered_uids(range(num_samples) if uids is None else uids),
        damaged=np.zeros(num_samples, dtype=bool),
        columns={name.replace("__", "."): make_column(values) for name, values in columns.items()},
    )
    return View(pool, np.arange(num_samples))


def kept_rows_of(answer) -> list[int]:
    return np.flatnonzero(answer.kept).tolist()
