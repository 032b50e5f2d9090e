"""`rebus pack`: lengths -> packs -> plan.arrow. Killed and run again, it goes on from counted shards."""

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rebus.config import dump_recipe
from rebus.engine import list_shards, map_shards
from rebus.errors import ConfigError, DataError, StrangerError
from rebus.fingerprint import (
    Manifest,
    is_current,
    prepare_out,
    read_manifest,
    write_atomically,
    write_manifest,
)
from rebus.log import output, say, show_table
from rebus.packs.complement import choose_packs
from rebus.packs.config import PackRecipe
from rebus.packs.lengths import count_shard, damage_line, write_kept_rows
from rebus.packs.plan import SCHEMA, write_plan
from rebus.records import Damage
from rebus.tokens.tokenizer import load_tokens, tokens_fingerprint

LENGTHS = "lengths"
LONGER_THAN_A_PACK = "longer than a pack"


@dataclass(frozen=True)
class PackSummary:
    """What a plan holds. fill: share of all positions that documents take. rule: which made fewer packs.
    histogram: (first length, documents)."""

    num_packs: int
    num_documents: int
    num_tokens: int
    num_image_tokens: int
    fill: float
    unusable: dict[str, int]
    rule: str
    histogram: tuple[tuple[int, int], ...]


def run(recipe: PackRecipe) -> PackSummary:
    """Plans which documents share a pack; see the recipe for what goes in.

    Raises: DataError where nothing is left to pack or too much is unusable; StrangerError where the selection was made
    of other shards.
    """
    wanted = _manifest(recipe)
    if is_current(recipe.out, wanted):
        say(f"{recipe.out} is up to date")
        return _read_summary(recipe.out)
    load_tokens(recipe.tokens)
    prepare_out(recipe.out, wanted)
    shards = [shard for folder in recipe.shards for shard in list_shards(folder)]
    table, bad_lines = _count(recipe, shards)
    table, summary, bad_lines = _pack(recipe, shards, table, bad_lines)
    write_plan(recipe.out, table)
    write_atomically(recipe.out / "quarantine.jsonl", "".join(line + "\n" for line in bad_lines))
    write_atomically(recipe.out / "pack.json", json.dumps(vars(summary), indent=2) + "\n")
    dump_recipe(recipe, recipe.out / "recipe.yaml")
    shutil.rmtree(recipe.out / LENGTHS)
    write_manifest(recipe.out, Manifest(wanted.kind, wanted.made_by, wanted.inputs, _facts(recipe, shards, summary)))
    _report(recipe, summary)
    return summary


def _manifest(recipe: PackRecipe) -> Manifest:
    inputs = {f"shards/{i}": read_manifest(folder, "shards").fingerprint for i, folder in enumerate(recipe.shards)}
    if recipe.selection is not None:
        inputs["selection"] = _check_selection(recipe, inputs["shards/0"])
    made_by = recipe.model_dump(mode="json", include={"capacity", "max_images_per_pack", "max_bad_share", "seed"})
    return Manifest("plan", {**made_by, "tokens": tokens_fingerprint(recipe.tokens)}, inputs)


def _check_selection(recipe: PackRecipe, shards: str) -> str:
    """A selection names shards by file name alone, so it must be of exactly the folder that is packed."""
    assert recipe.selection is not None
    if len(recipe.shards) > 1:
        raise ConfigError(
            f"`selection: {recipe.selection}` goes with one shards folder, but `shards:` names {len(recipe.shards)}."
        )
    selection = read_manifest(recipe.selection, "selection")
    if shards not in selection.inputs.values():
        raise StrangerError(
            f"{recipe.selection} was made of other shards than {recipe.shards[0]}: it knows {selection.inputs}, the "
            f"shards are {shards}. Select again: `rebus select`."
        )
    return selection.fingerprint


def _count(recipe: PackRecipe, shards: Sequence[Path]) -> tuple[pa.Table, list[str]]:
    """Lengths of all kept samples (columns shard, row, uid, num_*), and the unusable ones as lines of JSON."""
    out = recipe.out / LENGTHS
    out.mkdir(exist_ok=True)
    if recipe.selection is not None:
        write_kept_rows(recipe.selection, out, shards)
    function = partial(count_shard, tokens=recipe.tokens, selected=recipe.selection is not None, out=out)
    paths = map_shards(function, shards, description="counting tokens", num_workers=recipe.num_workers)
    tables = [pq.read_table(path) for path in paths]
    bad_lines = [line for path in paths for line in path.with_suffix(".jsonl").read_text().splitlines()]
    numbers = np.repeat(np.arange(len(tables), dtype=np.int32), [table.num_rows for table in tables])
    return pa.concat_tables(tables).append_column("shard", pa.array(numbers)), bad_lines


def _pack(
    recipe: PackRecipe, shards: Sequence[Path], table: pa.Table, bad_lines: list[str]
) -> tuple[pa.Table, PackSummary, list[str]]:
    """Bins the documents; those that fit no pack join the unusable ones. Returns the plan's table, sorted by pack."""
    lengths, images = table["num_tokens"].to_numpy(), table["num_images"].to_numpy()
    rule, packs = choose_packs(lengths, recipe.capacity, images, recipe.max_images_per_pack, recipe.seed)
    num_samples = table.num_rows + len(bad_lines)
    bad_lines = bad_lines + _too_large(recipe, shards, table.filter(pa.array(packs < 0)))
    _stop_if_too_bad(recipe, bad_lines, num_samples)
    placed = np.flatnonzero(packs >= 0)
    placed = placed[np.argsort(packs[placed], kind="stable")]
    table = table.take(pa.array(placed)).append_column("pack", pa.array(packs[placed].astype(np.int32)))
    return table.select(SCHEMA.names).cast(SCHEMA), _summarise(recipe, table, bad_lines, rule), bad_lines


def _too_large(recipe: PackRecipe, shards: Sequence[Path], table: pa.Table) -> list[str]:
    limits = f"a pack holds {recipe.capacity} tokens and {recipe.max_images_per_pack or 'any number of'} images"
    return [
        damage_line(
            Damage(
                shards[row["shard"]].name,
                row["key"],
                row["offset"],
                LONGER_THAN_A_PACK,
                f"{row['num_tokens']} tokens, {row['num_images']} images; {limits}",
            )
        )
        for row in table.to_pylist()
    ]


def _stop_if_too_bad(recipe: PackRecipe, bad_lines: Sequence[str], num_samples: int) -> None:
    reasons = _reasons(bad_lines)
    listed = "\n".join(f"  {reason}: {number:,}" for reason, number in reasons.items())
    if num_samples == len(bad_lines):
        raise DataError(f"no sample is left to pack, of {num_samples:,}.\n{listed}")
    share = len(bad_lines) / num_samples
    if share > recipe.max_bad_share:
        raise DataError(
            f"{len(bad_lines):,} of {num_samples:,} samples ({share:.1%}) cannot be packed; max_bad_share allows "
            f"{recipe.max_bad_share:.1%}:\n{listed}\nMend the data, raise `capacity` and `tokens.max_tokens`, or raise "
            "`max_bad_share`."
        )


def _summarise(recipe: PackRecipe, table: pa.Table, bad_lines: Sequence[str], rule: str) -> PackSummary:
    lengths = table["num_tokens"].to_numpy().astype(np.int64)
    num_packs = int(table["pack"].to_numpy().max()) + 1
    counts, edges = np.histogram(lengths, bins=min(12, int(np.ptp(lengths)) + 1))
    return PackSummary(
        num_packs=num_packs,
        num_documents=len(lengths),
        num_tokens=int(lengths.sum()),
        num_image_tokens=int(table["num_image_tokens"].to_numpy().astype(np.int64).sum()),
        fill=float(lengths.sum() / (num_packs * recipe.capacity)),
        unusable=_reasons(bad_lines),
        rule=rule,
        histogram=tuple((int(np.ceil(edge)), int(number)) for edge, number in zip(edges, counts, strict=False)),
    )


def _reasons(bad_lines: Sequence[str]) -> dict[str, int]:
    return dict(Counter(json.loads(line)["reason"] for line in bad_lines).most_common())


def _facts(recipe: PackRecipe, shards: Sequence[Path], summary: PackSummary) -> dict:
    return {
        **{k: v for k, v in vars(summary).items() if k not in ("histogram", "unusable")},
        "capacity": recipe.capacity,
        "shards": [{"folder": str(shard.parent), "name": shard.name} for shard in shards],
        "shard_folders": {f"shards/{i}": str(folder) for i, folder in enumerate(recipe.shards)},
        "tokens": recipe.tokens.model_dump(mode="json"),
        "tokens_fingerprint": tokens_fingerprint(recipe.tokens),
    }


def _read_summary(out: Path) -> PackSummary:
    body = json.loads((out / "pack.json").read_text())
    return PackSummary(**{**body, "histogram": tuple(map(tuple, body["histogram"]))})


def _report(recipe: PackRecipe, summary: PackSummary) -> None:
    rows: list[tuple[str, object]] = [
        ("packs", summary.num_packs),
        ("documents", summary.num_documents),
        ("documents per pack", f"{summary.num_documents / summary.num_packs:.1f}"),
        ("tokens", summary.num_tokens),
        ("of images", f"{summary.num_image_tokens / summary.num_tokens:.1%}"),
        ("fill", f"{summary.fill:.2%}"),
        ("rule", summary.rule),
        *((f"left out: {reason}", number) for reason, number in summary.unusable.items()),
    ]
    show_table(f"{recipe.out}: packs of {recipe.capacity:,} tokens", ["", ""], rows)
    most = max(number for _, number in summary.histogram)
    output.print("document lengths in tokens, from")
    for start, number in summary.histogram:
        output.print(f"{start:>7,}  {'█' * round(40 * number / most):<40} {number:,}", highlight=False)
