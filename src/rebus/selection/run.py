"""`rebus select`: rules in order, a funnel of what each dropped, and the kept uids in DataComp's form."""

import io
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
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
from rebus.selection.config import SelectionRecipe
from rebus.selection.pool import Pool, load_pool
from rebus.selection.rules import NO_SCORE, apply_rule

DAMAGED = "damaged"


@dataclass(frozen=True)
class SelectionSummary:
    """funnel: rows of rule, dropped, left, in the order in which they were applied."""

    out: Path
    num_kept: int
    num_dropped: int
    funnel: list[dict[str, Any]]


def run(recipe: SelectionRecipe) -> SelectionSummary:
    """Selects samples. Raises: StrangerError where the scores belong to other shards, ConfigError for a column."""
    manifest = _manifest(recipe)
    if is_current(recipe.out, manifest):
        say(f"{recipe.out} is up to date")
        return _summary(recipe.out, json.loads((recipe.out / "funnel.json").read_text()))
    pool = load_pool(list_shards(recipe.shards), recipe.scores, [rule.column for rule in recipe.rules])
    dropped_by, funnel = sift(recipe, pool)
    prepare_out(recipe.out, manifest)
    _write(recipe, pool, dropped_by, funnel)
    summary = _summary(recipe.out, funnel)
    facts = {"num_kept": summary.num_kept, "num_dropped": summary.num_dropped}
    write_manifest(recipe.out, replace(manifest, facts=facts))
    show_table(f"selection: {recipe.out}", ["rule", "dropped", "left"], [list(row.values()) for row in funnel])
    return summary


def _manifest(recipe: SelectionRecipe) -> Manifest:
    inputs = {"shards": read_manifest(recipe.shards, "shards").fingerprint}
    if recipe.scores is not None:
        scores = read_manifest(recipe.scores, "scores")
        remedy = f"Score {recipe.shards} with `rebus score`, or select from the shards that were scored."
        refuse_stranger(recipe.scores, {"shards": inputs["shards"]}, scores.inputs, remedy)
        inputs["scores"] = scores.fingerprint
    return Manifest("selection", {"rules": recipe.model_dump(mode="json")["rules"]}, inputs)


def sift(recipe: SelectionRecipe, pool: Pool) -> tuple[NDArray[np.object_], list[dict[str, Any]]]:
    """Applies the rules. Returns: [N] what dropped each sample (empty: kept), and the funnel."""
    numbers = pool.numbers
    dropped_by = np.full(len(pool.keys), "", dtype=object)
    funnel: list[dict[str, Any]] = []

    def record(name: str, dropped: NDArray[np.bool_]) -> None:
        dropped_by[dropped] = name
        funnel.append({"rule": name, "dropped": int(dropped.sum()), "left": int((dropped_by == "").sum())})

    record("all", np.zeros(len(pool.keys), dtype=bool))
    record(DAMAGED, pool.damaged)
    for rule in recipe.rules:
        values = pool.columns[rule.column]
        unscored = (dropped_by == "") & np.isnan(values)
        if unscored.any():
            record(NO_SCORE, unscored)
        left = np.flatnonzero(dropped_by == "")
        kept = apply_rule(rule, values[left], numbers[left], pool.shard[left])
        dropped = np.zeros(len(pool.keys), dtype=bool)
        dropped[left[~kept]] = True
        record(rule.name, dropped)
    return dropped_by, funnel


def _write(recipe: SelectionRecipe, pool: Pool, dropped_by: NDArray[np.object_], funnel: list[dict[str, Any]]) -> None:
    kept = dropped_by == ""
    table = pa.table(
        {
            "shard": pa.array([pool.tars[number].name for number in pool.shard], pa.string()),
            "row": pa.array(pool.row, pa.int32()),
            "key": pa.array(pool.keys, pa.string()),
            "uid": pa.array(pool.uids, pa.string()),
            "kept": pa.array(kept, pa.bool_()),
            "dropped_by": pa.array(dropped_by.tolist(), pa.string()),
        }
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    write_atomically(recipe.out / "selection.parquet", buffer.getvalue())
    write_atomically(recipe.out / "uids.npy", _npy(np.unique(pool.numbers[kept])))
    write_atomically(recipe.out / "funnel.json", json.dumps(funnel, indent=2) + "\n")
    dump_recipe(recipe, recipe.out / "recipe.yaml")


def _npy(uids: NDArray[np.void]) -> bytes:
    """Each uid once: DataComp's resharder would write a sample as often as its uid occurs."""
    buffer = io.BytesIO()
    np.save(buffer, uids)
    return buffer.getvalue()


def _summary(out: Path, funnel: list[dict[str, Any]]) -> SelectionSummary:
    kept = funnel[-1]["left"]
    return SelectionSummary(out, kept, funnel[0]["left"] - kept, funnel)
