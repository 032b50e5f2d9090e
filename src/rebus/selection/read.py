"""What later stages read of a selection."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rebus.fingerprint import read_manifest

SELECTION_FILE = "selection.parquet"


def read_selection(folder: Path) -> pa.Table:
    """Columns shard, row, key, uid, kept, dropped_by: every sample of the shards, those without index row as -1.

    Raises: DataError where `folder` is no finished selection, StrangerError where it is something else.
    """
    read_manifest(folder, "selection")
    return pq.read_table(Path(folder) / SELECTION_FILE)


def kept_rows(folder: Path) -> Iterator[tuple[str, list[int]]]:
    """Yields (shard's file name, kept rows of its index in order) for every shard, empty ones included.

    One pass over shard, row and kept: 9 bytes a sample, and a sort of what is kept.
    """
    read_manifest(folder, "selection")
    path = Path(folder) / SELECTION_FILE
    table = pq.read_table(path, columns=["shard", "row", "kept"], read_dictionary=["shard"])
    shards = table["shard"].unify_dictionaries().combine_chunks()
    names = shards.dictionary.to_pylist() if len(shards) else []
    kept = table["kept"].to_numpy()
    numbers, rows = shards.indices.to_numpy()[kept] if len(shards) else np.empty(0, int), table["row"].to_numpy()[kept]
    order = np.lexsort((rows, numbers))
    bounds = np.searchsorted(numbers[order], np.arange(len(names) + 1))
    for name, number in sorted((name, number) for number, name in enumerate(names)):
        yield name, rows[order[bounds[number] : bounds[number + 1]]].tolist()
