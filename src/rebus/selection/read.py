"""What later stages read of a selection."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rebus.fingerprint import read_manifest


def read_selection(folder: Path) -> pa.Table:
    """Columns shard, row, key, uid, kept, dropped_by: every sample of the shards, those without index row as -1.

    Raises: DataError where `folder` is no finished selection, StrangerError where it is something else.
    """
    read_manifest(folder, "selection")
    return pq.read_table(Path(folder) / "selection.parquet")


def kept_rows(folder: Path) -> Iterator[tuple[str, list[int]]]:
    """Yields (shard's file name, kept rows of its index in order) for every shard, empty ones included."""
    table = read_selection(folder)
    for shard in sorted(pc.unique(table["shard"]).to_pylist()):
        rows = table.filter(pc.and_(pc.equal(table["shard"], shard), table["kept"]))["row"]
        yield shard, sorted(rows.to_pylist())
