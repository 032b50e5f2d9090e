"""`rebus select`: rules in order, a funnel of what each dropped, and the kept uids in DataComp's form."""

import io
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rebus.config import dump_recipe
from rebus.engine import list_shards
from rebus.fingerprint import (
    Manifest,
    is_current,
    prepare_out,
    read_manifest,
    refuse_stranger,
    write_atomically,
    write_manifest,
)
from rebus.log import say, show_table
from rebus.scores.tables import QUARANTINE, SCORER
from rebus.selection.config import SelectionRecipe
from rebus.selection.pool import Pool, find_column, load_pool
from rebus.selection.read import SELECTION_FILE
from rebus.selection.rules import OpenRule
from rebus.selection.sift import Sifted, inputs_of, sift
from rebus.uids import uids_as_strings, unique

NUM_AT_ONCE = 1 << 20  # rows of a row group
SCHEMA = pa.schema(
    [
        ("shard", pa.string()),
        ("row", pa.int32()),
        ("key", pa.string()),
        ("uid", pa.string()),
        ("kept", pa.bool_()),
        ("dropped_by", pa.string()),
    ]
)


@dataclass(frozen=True)
class SelectionSummary:
    """funnel: rows of rule, dropped, left, in the order in which they were applied."""

    out: Path
    num_kept: int
    num_dropped: int
    funnel: list[dict[str, Any]]


def run(recipe: SelectionRecipe) -> SelectionSummary:
    """Selects samples. Raises: StrangerError where the scores belong to other shards, ConfigError for a column."""
    opened = [entry.open() for entry in recipe.rules]
    manifest = _manifest(recipe, opened)
    if is_current(recipe.out, manifest):
        say(f"{recipe.out} is up to date")
        return _summary(recipe.out, json.loads((recipe.out / "funnel.json").read_text()))
    pool = load_pool(list_shards(recipe.shards), recipe.scores, _names(opened, "columns"), _names(opened, "vectors"))
    sifted = sift(opened, pool)
    prepare_out(recipe.out, manifest)
    _write(recipe, pool, sifted)
    summary = _summary(recipe.out, sifted.funnel)
    facts: dict[str, Any] = {"num_kept": summary.num_kept, "num_dropped": summary.num_dropped}
    if sifted.counts:
        facts["counts"] = sifted.counts
    write_manifest(recipe.out, replace(manifest, facts=facts))
    _close(recipe.out, sifted)
    return summary


def _names(opened: list[OpenRule], kind: str) -> list[str]:
    return [name for rule in opened for name in getattr(rule.module, kind)(rule.options)]


def _manifest(recipe: SelectionRecipe, opened: list[OpenRule]) -> Manifest:
    inputs = {"shards": read_manifest(recipe.shards, "shards").fingerprint}
    if recipe.scores is not None:
        scores = read_manifest(recipe.scores, "scores")
        remedy = f"Score {recipe.shards} with `rebus score`, or select from the shards that were scored."
        refuse_stranger(recipe.scores, {"shards": inputs["shards"]}, scores.inputs, remedy)
        inputs["scores"] = scores.fingerprint
        inputs |= _scorers_read(recipe.scores, list_shards(recipe.shards), opened)
    return Manifest("selection", {"rules": [rule.made_by for rule in opened]}, inputs | inputs_of(opened))


def _scorers_read(scores: Path, tars: list[Path], opened: list[OpenRule]) -> dict[str, str]:
    """What made the tables that the rules read, and whether pictures were decoded; other scorers do not matter."""
    columns = [find_column(scores, tars, name)[0] for name in _names(opened, "columns")]
    vectors = [find_column(scores, tars, name, ".vectors")[0] for name in _names(opened, "vectors")]
    found = {"scores.decoded": str((scores / QUARANTINE).is_dir())}
    for scorer in sorted({*columns, *vectors} - {""}):
        path = scores / scorer / SCORER
        if path.is_file():
            found[f"scores.{scorer}"] = json.loads(path.read_text())["fingerprint"]
    return found


def _write(recipe: SelectionRecipe, pool: Pool, sifted: Sifted) -> None:
    _write_parquet(recipe.out / SELECTION_FILE, SCHEMA, _batches(pool, sifted))
    for_pairs = [_pairs(pool, name, pairs) for name, pairs in sifted.pairs.items()]
    if for_pairs:
        _write_parquet(recipe.out / "pairs.parquet", for_pairs[0].schema, for_pairs)
    write_atomically(recipe.out / "uids.npy", _npy(unique(pool.uids[sifted.dropped_by == 0])))
    write_atomically(recipe.out / "funnel.json", json.dumps(sifted.funnel, indent=2) + "\n")
    examples = [asdict(one) for one in sifted.examples]
    write_atomically(recipe.out / "examples.json", json.dumps(examples, indent=1, ensure_ascii=False) + "\n")
    dump_recipe(recipe, recipe.out / "recipe.yaml")


def _write_parquet(path: Path, schema: pa.Schema, tables: Iterator[pa.Table] | list[pa.Table]) -> None:
    """Whole or not at all, a row group at a time."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with pq.ParquetWriter(temporary, schema) as writer:
            for table in tables:
                writer.write_table(table)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _batches(pool: Pool, sifted: Sifted) -> Iterator[pa.Table]:
    names, reasons = pa.array([tar.name for tar in pool.tars]), pa.array(sifted.reasons)
    for start in range(0, len(pool), NUM_AT_ONCE):
        part = slice(start, start + NUM_AT_ONCE)
        rows, dropped_by = pool.row[part], sifted.dropped_by[part]
        columns = {
            "shard": names.take(pa.array(pool.shard[part])),
            "row": pa.array(rows.astype(np.int32)),
            "key": pool.keys.slice(start, NUM_AT_ONCE),
            "uid": _strings(pool.uids[part], rows < 0),
            "kept": pa.array(dropped_by == 0),
            "dropped_by": reasons.take(pa.array(dropped_by)),
        }
        yield pa.table(columns, schema=SCHEMA)


def _strings(uids: NDArray[np.void], absent: NDArray[np.bool_]) -> pa.Array:
    """Empty where the index has no such sample."""
    return pc.if_else(pa.array(absent), "", uids_as_strings(uids).cast(pa.string()))


def _pairs(pool: Pool, rule: str, pairs: pa.Table) -> pa.Table:
    """Near-duplicates with their uids, shards and rows instead of their numbers in the pool.

    A number of -1 is no sample of it: the table's column `place` says what it is, and stands as its shard.
    """
    columns: dict[str, Any] = {"rule": pa.array([rule] * pairs.num_rows, pa.string())}
    names = pa.array([tar.name for tar in pool.tars])
    for side in ("dropped", "kept"):
        numbers = pairs[side].to_numpy()
        outside = numbers < 0
        shards = names.take(pa.array(pool.shard[numbers]))
        columns[side] = _strings(pool.uids[numbers], outside)
        columns[f"{side}_shard"] = pc.if_else(pa.array(outside), pairs["place"], shards) if outside.any() else shards
        columns[f"{side}_row"] = pa.array(np.where(outside, -1, pool.row[numbers]).astype(np.int32))
    return pa.table({**columns, "distance": pairs["distance"].cast(pa.float32())})


def _npy(uids: NDArray[np.void]) -> bytes:
    """Each uid once: DataComp's resharder would write a sample as often as its uid occurs."""
    buffer = io.BytesIO()
    np.save(buffer, uids)
    return buffer.getvalue()


def _summary(out: Path, funnel: list[dict[str, Any]]) -> SelectionSummary:
    kept = funnel[-1]["left"]
    return SelectionSummary(out, kept, funnel[0]["left"] - kept, funnel)


def _close(out: Path, sifted: Sifted) -> None:
    show_table(f"selection: {out}", ["rule", "dropped", "left"], [list(row.values()) for row in sifted.funnel])
    for name, counts in sifted.counts.items():
        say(f"{name}: " + ", ".join(f"{count:,} {words}" for words, count in counts.items()))
