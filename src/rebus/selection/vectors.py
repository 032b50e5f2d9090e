"""Embeddings that `rebus score` kept, read shard by shard: ten million of 512 numbers would be 20 GB at once."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rebus.errors import DataError
from rebus.selection.pool import Pool
from rebus.uids import places_of, uids_as_numbers


def vector_length(pool: Pool, name: str) -> int:
    """D of a column of vectors."""
    _, column = pool.vectors[name]
    return pq.read_schema(_path(pool, pool.tars[0], name)).field(column).type.list_size


def iterate_vectors(
    pool: Pool, name: str, rows: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Yields (places in `rows` [m], float32 [m, D]) for every shard. rows: int64 [n], numbers in the pool.

    Raises: DataError where a scorer did not see a shard.
    """
    shards = pool.shard[rows]
    for number, tar in enumerate(pool.tars):
        places = np.flatnonzero(shards == number)
        if len(places):
            uids, vectors = _read(_path(pool, tar, name), pool.vectors[name][1])
            found = places_of(pool.uids[rows[places]], uids)
            yield places[found >= 0], vectors[found[found >= 0]].astype(np.float32)


def _path(pool: Pool, tar: Path, name: str) -> Path:
    scorer, _ = pool.vectors[name]
    assert pool.scores is not None  # `find_column` found the place there
    path = pool.scores / scorer / f"{tar.stem}.vectors.parquet"
    if not path.is_file():
        raise DataError(f"{path} is missing: scorer '{scorer}' did not see {tar.name}. Run `rebus score` again.")
    return path


def _read(path: Path, column: str) -> tuple[NDArray[np.void], NDArray]:
    """uids [m] and vectors [m, D] as they are stored; a null row is one of NaN."""
    table = pq.read_table(path, columns=["uid", column]).combine_chunks()
    vectors = table[column]
    size = vectors.type.list_size
    array = vectors.chunk(0) if vectors.num_chunks else pa.array([], vectors.type)
    flat = array.values.to_numpy(zero_copy_only=False)[array.offset * size : (array.offset + len(array)) * size]
    return uids_as_numbers(table["uid"]), flat.reshape(-1, size)
