"""What later stages read of a selection."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from rebus.fingerprint import read_manifest

SELECTION_FILE = "selection.parquet"


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
