"""`rebus score`: every scorer over every shard, one decode a picture, restartable shard by shard."""

import json
import time
from collections import Counter
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rebus.config import dump_recipe
from rebus.engine import list_shards, stream_shards
from rebus.errors import DataError
from rebus.fingerprint import (
    Manifest,
    discard,
    fingerprint,
    is_current,
    prepare_out,
    read_manifest,
    write_atomically,
    write_manifest,
)
from rebus.log import say, show_table
from rebus.scores.config import ScoreRecipe
from rebus.scores.measure import Pass, Scored, is_measured
from rebus.scores.scorer import Scorer, open_named
from rebus.scores.tables import (
    SCORER,
    concatenate,
    measured_path,
    read_measured,
    read_quarantine,
    table_path,
    write_table,
)

FORMAT = 2
SHARDS_AT_ONCE = 8  # what a worker among several reads ahead over: no pause between shards


def run(recipe: ScoreRecipe) -> Path:
    """Scores the shards of `recipe.shards` into `recipe.out` and prints what the scores look like.

    The folder is the scores of these shards, whichever scorers have seen them: another one changes no fingerprint but
    its own (scorer.json), so what was selected by the first stays valid.
    """
    chosen = [open_named(name, entry) for name, entry in recipe.scorers.items()]
    shards = list_shards(recipe.shards)
    base = Manifest("scores", {"format": FORMAT}, {"shards": read_manifest(recipe.shards, "shards").fingerprint})
    made_by = {scorer.name: scorer.made_by() for scorer in chosen}
    if is_current(recipe.out, base) and all(_is_finished(recipe.out, name, made_by[name]) for name in made_by):
        say(f"{recipe.out} is up to date")
        return recipe.out
    prepare_out(recipe.out, base)
    for name, found in made_by.items():
        _prepare_scorer(recipe.out / name, found)

    started = time.monotonic()
    scored = _measure_shards(recipe, chosen, shards)
    for scorer in chosen:
        if scorer.judges_the_pool:
            _judge_pool(recipe.out, scorer, shards)
    damages = [damage for shard in shards for damage in read_quarantine(recipe.out, shard)]
    num_scored = sum(pq.read_metadata(table_path(recipe.out, chosen[0].name, shard)).num_rows for shard in shards)
    _stop_if_too_many_bad(recipe, damages, num_scored)
    dump_recipe(recipe, recipe.out / "recipe.yaml")
    names = sorted({*made_by, *_finished_before(recipe.out, shards)})
    facts = {"num_scored": num_scored, "num_damaged": len(damages), "scorers": names}
    write_manifest(recipe.out, replace(base, facts=facts))
    _close(recipe, chosen, shards, scored, time.monotonic() - started, (num_scored, len(damages)))
    return recipe.out


def _is_finished(out: Path, name: str, made_by: dict[str, Any]) -> bool:
    """Whether a finished scores folder holds the tables of this very scorer."""
    return name in read_manifest(out, "scores").facts["scorers"] and _is_made_by(out / name, made_by)


def _is_made_by(folder: Path, made_by: dict[str, Any]) -> bool:
    path = folder / SCORER
    return path.is_file() and json.loads(path.read_text())["fingerprint"] == fingerprint(made_by)


def _prepare_scorer(folder: Path, made_by: dict[str, Any]) -> None:
    """Tables that other options or weights made give way; those of an interrupted run stay."""
    if not _is_made_by(folder, made_by):
        discard(folder)
        body = {"fingerprint": fingerprint(made_by), "made_by": made_by}
        write_atomically(folder / SCORER, json.dumps(body, indent=2) + "\n")


def _finished_before(out: Path, shards: list[Path]) -> list[str]:
    """Scorers of earlier runs over the same shards whose tables are whole."""
    names = [path.parent.name for path in out.glob(f"*/{SCORER}")]
    return [name for name in names if all(table_path(out, name, shard).is_file() for shard in shards)]


def _measure_shards(recipe: ScoreRecipe, chosen: list[Scorer], shards: list[Path]) -> list[Scored]:
    """Each shard by the scorers that have not seen it yet. Models load only where some are left."""
    scored: list[Scored] = []

    def missing(shard: Path) -> tuple[str, ...]:
        return tuple(one.name for one in chosen if not is_measured(recipe.out, one, shard))

    for names, left in [(names, list(group)) for names, group in groupby(shards, key=missing)]:
        if names:
            work = Pass(recipe, names)
            scored += stream_shards(
                work,
                left,
                description=f"scoring ({', '.join(names)})",
                num_workers=recipe.num_workers,
                stretch=SHARDS_AT_ONCE,
                note=_speed,
            )
    return scored


def _speed(scored: list[Scored]) -> str:
    seconds = sum(one.seconds for one in scored) or 1e-9
    num_samples, waiting = sum(one.num_samples for one in scored), sum(one.waiting for one in scored)
    return f"{num_samples / seconds:,.0f} samples/s a worker, {waiting / seconds:.0%} waiting for decode"


def _judge_pool(out: Path, scorer: Scorer, shards: list[Path]) -> None:
    """Joins what was measured on every shard, judges the pool as one, and deals the scores back to the shards."""
    if all(table_path(out, scorer.name, shard).is_file() for shard in shards):
        return
    measured = [read_measured(measured_path(out, scorer.name, shard)) for shard in shards]
    pool = concatenate([columns for _, columns in measured if columns])
    scores = scorer.module.judge(scorer.options, pool)
    start = 0
    for shard, (names, _) in zip(shards, measured, strict=True):
        stop = start + len(names)
        write_table(out, scorer.name, shard, names, {name: values[start:stop] for name, values in scores.items()})
        start = stop
    for shard in shards:
        measured_path(out, scorer.name, shard).unlink()


def _stop_if_too_many_bad(recipe: ScoreRecipe, damages: list[Any], num_scored: int) -> None:
    num_seen = num_scored + len(damages)
    if len(damages) <= recipe.max_bad_share * num_seen:
        return
    reasons = Counter(damage.reason for damage in damages)
    rows = "\n".join(f"  {count:>8,}  {reason}" for reason, count in reasons.most_common())
    raise DataError(
        f"{len(damages):,} of {num_seen:,} samples cannot be scored, more than max_bad_share = "
        f"{recipe.max_bad_share}:\n{rows}\n"
        f"They are listed in {recipe.out / 'quarantine'}. Repair them, or raise max_bad_share."
    )


def _close(
    recipe: ScoreRecipe,
    chosen: list[Scorer],
    shards: list[Path],
    scored: list[Scored],
    seconds: float,
    counts: tuple[int, int],
) -> None:
    rows = [row for scorer in chosen for row in _rows(recipe.out, scorer.name, shards)]
    title = f"{counts[0]:,} pairs scored in {seconds:.1f} s, {counts[1]:,} damaged"
    show_table(title, ["column", "5%", "median", "95%", "no value"], rows)
    if scored:
        say(f"{len(scored):,} of {len(shards):,} shards in this run: {_speed(scored)}")


def _rows(out: Path, name: str, shards: list[Path]) -> list[tuple[str, ...]]:
    """Quantiles of numbers; of texts and truths the most frequent, and its share."""
    tables = [pq.read_table(table_path(out, name, shard)) for shard in shards]
    table = pa.concat_tables(tables, promote_options="default")
    return [(f"{name}.{column}", *_described(table[column])) for column in table.column_names[2:]]


def _described(column: pa.ChunkedArray) -> tuple[str, ...]:
    if not pa.types.is_floating(column.type):
        counts = pc.value_counts(column.drop_null().combine_chunks())
        numbers = counts.field("counts").to_numpy()
        first = int(numbers.argmax()) if len(numbers) else 0
        share = numbers[first] / len(column) if len(numbers) else 0.0
        most = f"{counts[first]['values'].as_py()!r:.40} {share:.0%}" if share >= 0.01 else ""
        return "", most, f"{len(counts):,} values", f"{column.null_count:,}"
    values = column.to_numpy().astype(np.float64)
    finite = values[np.isfinite(values)]
    quantiles = np.quantile(finite, [0.05, 0.5, 0.95]) if len(finite) else [np.nan] * 3
    return (*(f"{value:.3g}" for value in quantiles), f"{len(values) - len(finite):,}")
