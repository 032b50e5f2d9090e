"""Second rounds: what failed for a reason that may have passed goes into a table of its own, whose shards come after
the finished ones. Those are not touched."""

import json
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rebus.shards.config import ShardsRecipe
from rebus.shards.download.reasons import is_retryable
from rebus.shards.download.shard import rows_path
from rebus.shards.sources.urls import RECORD, Slice, find_retries, find_slices, read_rows

FOLDER, TABLES = "retries", "tables"
SCHEMA = pa.schema([("key", pa.string()), (RECORD, pa.string())])
BATCH_ROWS = 10_000


def rounds(out: Path) -> list[int]:
    """The number of the first shard of each round of retries, in order."""
    return sorted(int(path.stem) for path in (out / FOLDER).glob("[0-9]*.parquet"))


def last_round(out: Path) -> int:
    """The first shard of the last round; 0 where there was none, and the table itself is the last."""
    return max(rounds(out), default=0)


def all_slices(recipe: ShardsRecipe) -> Iterator[Slice]:
    """The table's, then those of each round."""
    yield from find_slices(recipe.input, recipe.rows_per_shard, recipe.out / TABLES)
    for first in rounds(recipe.out):
        yield from _of_round(recipe, first)


def _of_round(recipe: ShardsRecipe, first: int) -> Iterator[Slice]:
    return find_retries(recipe.out / FOLDER / f"{first:012d}.parquet", first, recipe.rows_per_shard)


def tar_of(recipe: ShardsRecipe, number: int) -> Path:
    return recipe.out / f"{number:0{recipe.download.digits}d}.tar"


def has_retryable(recipe: ShardsRecipe) -> bool:
    """Whether asking again could bring anything. Every round asks for all that the one before left."""
    return any(_failed_keys(tar) for tar in recipe.out.glob("*.tar") if int(tar.stem) >= last_round(recipe.out))


def plan_round(recipe: ShardsRecipe) -> bool:
    """Writes the table of the next round, whole or not at all. False where there is nothing to ask again.

    Every shard must be finished.
    """
    if not has_retryable(recipe):
        return False
    first = 1 + max(int(tar.stem) for tar in recipe.out.glob("*.tar"))
    target = recipe.out / FOLDER / f"{first:012d}.parquet"
    target.parent.mkdir(exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        rows = _failed_rows(recipe)
        with pq.ParquetWriter(temporary, SCHEMA, compression="zstd") as writer:
            while batch := list(islice(rows, BATCH_ROWS)):
                writer.write_table(pa.Table.from_pylist(batch, schema=SCHEMA))
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _failed_rows(recipe: ShardsRecipe) -> Iterator[dict[str, str]]:
    last = last_round(recipe.out)
    for one in _of_round(recipe, last) if last else all_slices(recipe):
        failed = _failed_keys(tar_of(recipe, one.piece.number))
        if not failed:
            continue
        for row in read_rows(one, recipe.download, recipe.rows_per_shard):
            if row.key in failed:
                yield {"key": row.key, RECORD: json.dumps(row.record)}


def _failed_keys(tar: Path) -> set[str]:
    table = pq.read_table(rows_path(tar), columns=["key", "reason"])
    wanted = [reason for reason in pc.unique(table["reason"]).to_pylist() if reason and is_retryable(reason)]
    if not wanted:
        return set()
    return set(table.filter(pc.is_in(table["reason"], pa.array(wanted)))["key"].to_pylist())
