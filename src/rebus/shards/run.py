"""`rebus shards`: brings raw data into the form that every later stage reads."""

import functools
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from rebus.config import dump_recipe
from rebus.engine import list_shards, map_shards
from rebus.errors import DataError
from rebus.fingerprint import (
    BUILDING,
    Manifest,
    file_fingerprint,
    is_current,
    prepare_out,
    read_manifest,
    write_manifest,
)
from rebus.log import say, show_table
from rebus.shards.config import ShardsRecipe
from rebus.shards.convert import convert, tree_fingerprint
from rebus.shards.index import VERSION, index_path
from rebus.shards.read import read_quarantine
from rebus.shards.sources.tars import INDEXING, adopt, prepare_in_place, tars_fingerprint


@dataclass(frozen=True)
class ShardsSummary:
    """What lies in a shards folder. reasons: damage by reason, most frequent first."""

    out: Path
    num_shards: int
    num_samples: int
    num_damaged: int
    reasons: dict[str, int]


def run(recipe: ShardsRecipe) -> ShardsSummary:
    """Writes or indexes shards. Raises: DataError where more than `max_bad_share` of the samples is damaged."""
    manifest = _manifest(recipe)
    if is_current(recipe.out, manifest):
        summary = summarize(recipe.out, list_shards(recipe.out))
        _refuse_bad_share(summary, recipe.max_bad_share)
        say(f"{recipe.out} is up to date")
        return summary
    tars = _index_tars(recipe, manifest) if recipe.source == "tars" else _convert(recipe, manifest)
    summary = summarize(recipe.out, tars)
    _refuse_bad_share(summary, recipe.max_bad_share)
    _finish(recipe, manifest, summary)
    _show(summary)
    return summary


def _manifest(recipe: ShardsRecipe) -> Manifest:
    """Only what shapes the bytes: where a folder lies and how many processes worked do not."""
    made_by: dict[str, Any] = {"source": recipe.source, "index_version": VERSION}
    if recipe.source == "tars":
        return Manifest("shards", made_by, {"input": tars_fingerprint(recipe.input)})
    made_by["samples_per_shard"] = recipe.samples_per_shard
    if not recipe.input.is_file():
        raise DataError(
            f"no table at {recipe.input}. `input` is the CSV, TSV, JSON or JSONL file of `{recipe.source}`."
        )
    inputs = {"input": file_fingerprint(recipe.input), "root": tree_fingerprint(recipe.image_root)}
    return Manifest("shards", made_by, inputs)


def _index_tars(recipe: ShardsRecipe, manifest: Manifest) -> list[Path]:
    if recipe.in_place:
        prepare_in_place(recipe.out, manifest.fingerprint)
    else:
        prepare_out(recipe.out, manifest)
    function = functools.partial(adopt, out=recipe.out)
    return map_shards(function, list_shards(recipe.input), description="index", num_workers=recipe.num_workers)


def _convert(recipe: ShardsRecipe, manifest: Manifest) -> list[Path]:
    _refuse_out_with_input(recipe)
    prepare_out(recipe.out, manifest)
    return convert(
        recipe.source, recipe.input, recipe.image_root, recipe.out, recipe.samples_per_shard, recipe.num_workers
    )


def _refuse_out_with_input(recipe: ShardsRecipe) -> None:
    """An `out` that holds its own input would empty it, and would change its own fingerprint."""
    out = recipe.out.resolve()
    for name, path in (("input", recipe.input), ("root", recipe.image_root)):
        inside, around = out.is_relative_to(path.resolve()), path.resolve().is_relative_to(out)
        if inside or around:
            raise DataError(f"`out` ({out}) and `{name}` ({path}) lie inside each other. Choose another `out`.")


def summarize(out: Path, tars: list[Path]) -> ShardsSummary:
    """Counts samples and damage of indexed shards from their files."""
    num_samples = sum(pq.read_metadata(index_path(tar)).num_rows for tar in tars)
    reasons = Counter(damage.reason for tar in tars for damage in read_quarantine(tar))
    return ShardsSummary(out, len(tars), num_samples, reasons.total(), dict(reasons.most_common()))


def _refuse_bad_share(summary: ShardsSummary, limit: float) -> None:
    total = summary.num_samples + summary.num_damaged
    if total == 0:
        raise DataError(f"{summary.out} holds no sample.")
    if summary.num_damaged > limit * total:
        _show(summary)
        share = f"{summary.num_damaged} of {total} samples ({summary.num_damaged / total:.1%}) are damaged"
        raise DataError(
            f"{summary.out}: {share}, more than max_bad_share = {limit:.1%}. "
            f"The *.quarantine.jsonl files there name each one; mend the source or raise max_bad_share."
        )


def _finish(recipe: ShardsRecipe, manifest: Manifest, summary: ShardsSummary) -> None:
    facts = {
        "num_samples": summary.num_samples,
        "num_shards": summary.num_shards,
        "num_damaged": summary.num_damaged,
        "reasons": summary.reasons,
        "in_place": recipe.in_place,
    }
    dump_recipe(recipe, recipe.out / "recipe.yaml")
    _sweep(recipe.out)
    write_manifest(recipe.out, replace(manifest, facts=facts))
    (recipe.out / BUILDING).unlink(missing_ok=True)
    (recipe.out / INDEXING).unlink(missing_ok=True)


def _sweep(out: Path) -> None:
    """Removes the half-written files of processes that were killed: `.00003.tar.4711.tmp`."""
    for path in out.glob(".*.tmp"):
        if re.fullmatch(r"\..+\.(tar|parquet|jsonl|json|yaml)\.\d+\.tmp", path.name):
            path.unlink(missing_ok=True)


def _show(summary: ShardsSummary) -> None:
    rows: list[tuple[str, int]] = [("usable samples", summary.num_samples), ("shards", summary.num_shards)]
    rows += [(f"damaged: {reason}", count) for reason, count in summary.reasons.items()]
    show_table(f"shards: {summary.out}", ["", "number"], rows)


def open_shards(folder: Path) -> tuple[Manifest, list[Path]]:
    """The manifest and the tars of a finished shards folder. Raises: DataError, StrangerError."""
    return read_manifest(folder, "shards"), list_shards(folder)
