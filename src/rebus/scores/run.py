"""`rebus score`: every scorer over every shard, one decode a picture, restartable shard by shard."""

import importlib
import json
import pkgutil
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import load_file, save

from rebus.config import check_recipe, dump_recipe
from rebus.engine import list_shards, map_shards
from rebus.errors import ConfigError, DataError, nearest
from rebus.fingerprint import (
    Manifest,
    is_current,
    prepare_out,
    read_manifest,
    write_atomically,
    write_manifest,
)
from rebus.log import say, show_table
from rebus.records import Damage
from rebus.scores import scorers
from rebus.scores.config import ScoreRecipe
from rebus.scores.decode import Decoded, decode_shard

FORMAT = 1


@dataclass(frozen=True)
class Scorer:
    """A scorer of a recipe: its name, its module (see scorers/__init__.py) and its checked options."""

    name: str
    module: ModuleType
    options: Any

    @property
    def judges_the_pool(self) -> bool:
        return hasattr(self.module, "judge")


def run(recipe: ScoreRecipe) -> Path:
    """Scores the shards of `recipe.shards` into `recipe.out` and prints what the scores look like."""
    chosen = [open_named(name, options) for name, options in recipe.scorers.items()]
    shards = list_shards(recipe.shards)
    source = read_manifest(recipe.shards, "shards")
    made_by = {"format": FORMAT, **recipe.model_dump(mode="json", exclude={"out", "num_threads"})}
    inputs = {"shards": source.fingerprint}
    for scorer in chosen:
        if hasattr(scorer.module, "inputs"):
            inputs |= {f"{scorer.name}/{name}": found for name, found in scorer.module.inputs(scorer.options).items()}
    manifest = Manifest("scores", made_by, inputs)
    if is_current(recipe.out, manifest):
        say(f"{recipe.out} is up to date")
        return recipe.out
    prepare_out(recipe.out, manifest)
    _set_threads(recipe.num_threads)

    started = time.monotonic()
    _measure_shards(recipe, chosen, shards)
    for scorer in chosen:
        if scorer.judges_the_pool:
            _judge_pool(recipe.out, scorer, shards)
    damages = [damage for shard in shards for damage in _read_quarantine(recipe.out, shard)]
    num_scored = sum(pq.read_metadata(table_path(recipe.out, chosen[0].name, shard)).num_rows for shard in shards)
    _stop_if_too_many_bad(recipe, damages, num_scored)
    dump_recipe(recipe, recipe.out / "recipe.yaml")
    facts = {"num_scored": num_scored, "num_damaged": len(damages), "scorers": list(recipe.scorers)}
    write_manifest(recipe.out, Manifest(manifest.kind, manifest.made_by, manifest.inputs, facts))
    _close(recipe, chosen, shards, num_scored, len(damages), time.monotonic() - started)
    return recipe.out


def open_named(name: str, options: dict[str, Any]) -> Scorer:
    """Finds a scorer by its module's name and checks its options."""
    known = [module.name for module in pkgutil.iter_modules(scorers.__path__)]
    if name not in known:
        raise ConfigError(f"no scorer '{name}'{nearest(name, known)}. There are: {', '.join(known)}.")
    module = importlib.import_module(f"{scorers.__name__}.{name}")
    return Scorer(name, module, check_recipe(module.Options, options, f"scorers.{name}"))


def table_path(out: Path, scorer: str, shard: Path) -> Path:
    return out / scorer / f"{shard.stem}.parquet"


def _quarantine_path(out: Path, shard: Path) -> Path:
    return out / "quarantine" / f"{shard.stem}.jsonl"


def _measured_path(out: Path, scorer: str, shard: Path) -> Path:
    return out / scorer / f"{shard.stem}.measured.safetensors"


def _measure_shards(recipe: ScoreRecipe, chosen: list[Scorer], shards: list[Path]) -> None:
    """A shard is done once its quarantine file, written last, exists. Models load only if a shard is left."""
    left = [shard for shard in shards if not _quarantine_path(recipe.out, shard).is_file()]
    if not left:
        return
    measures = {scorer.name: scorer.module.open_scorer(scorer.options) for scorer in chosen}

    def measure_shard(shard: Path) -> None:
        _measure_shard(recipe, chosen, measures, shard)

    map_shards(measure_shard, left, description="scoring")


def _measure_shard(recipe: ScoreRecipe, chosen: list[Scorer], measures: dict[str, Callable], shard: Path) -> None:
    damages: list[Damage] = []
    identities: list[tuple[str, str]] = []
    parts: dict[str, list[dict[str, np.ndarray]]] = {scorer.name: [] for scorer in chosen}
    for batch in _batches(decode_shard(shard), recipe.batch_size, damages):
        identities += [(item.uid, item.key) for item in batch]
        for scorer in chosen:
            parts[scorer.name].append(measures[scorer.name](batch))
    for scorer in chosen:
        columns = _concatenate(parts[scorer.name])
        if scorer.judges_the_pool:
            columns = {name: np.ascontiguousarray(values) for name, values in columns.items()}
            metadata = {"uids": json.dumps(identities)}
            write_atomically(_measured_path(recipe.out, scorer.name, shard), save(columns, metadata))
        else:
            _write_table(recipe.out, scorer.name, shard, identities, columns)
    lines = "".join(json.dumps(asdict(damage)) + "\n" for damage in damages)
    write_atomically(_quarantine_path(recipe.out, shard), lines)


def _batches(items: Iterable[Decoded | Damage], size: int, damages: list[Damage]) -> Iterable[list[Decoded]]:
    """Groups decoded samples; damaged ones go to `damages`."""
    batch: list[Decoded] = []
    for item in items:
        if isinstance(item, Damage):
            damages.append(item)
            continue
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _concatenate(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}


def _judge_pool(out: Path, scorer: Scorer, shards: list[Path]) -> None:
    """Joins what was measured on every shard, judges the pool as one, and deals the scores back to the shards."""
    from safetensors import safe_open

    paths = [_measured_path(out, scorer.name, shard) for shard in shards]
    identities = []
    for path in paths:
        with safe_open(path, "np") as tensors:
            identities.append([tuple(pair) for pair in json.loads(tensors.metadata()["uids"])])
    pool = _concatenate([load_file(path) for path in paths])
    scores = scorer.module.judge(scorer.options, pool)
    start = 0
    for shard, rows in zip(shards, identities, strict=True):
        stop = start + len(rows)
        _write_table(out, scorer.name, shard, rows, {name: values[start:stop] for name, values in scores.items()})
        start = stop


def _write_table(
    out: Path, scorer: str, shard: Path, identities: list[tuple[str, str]], columns: dict[str, np.ndarray]
) -> None:
    table = pa.table(
        {
            "uid": pa.array([uid for uid, _ in identities], pa.string()),
            "key": pa.array([key for _, key in identities], pa.string()),
            **{name: pa.array(values, pa.float32()) for name, values in columns.items()},
        }
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    write_atomically(table_path(out, scorer, shard), sink.getvalue().to_pybytes())


def _read_quarantine(out: Path, shard: Path) -> list[Damage]:
    lines = _quarantine_path(out, shard).read_text(encoding="utf-8").splitlines()
    return [Damage(**json.loads(line)) for line in lines]


def _stop_if_too_many_bad(recipe: ScoreRecipe, damages: list[Damage], num_scored: int) -> None:
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


def _set_threads(num_threads: int | None) -> None:
    if num_threads is not None:
        import torch

        torch.set_num_threads(num_threads)


def _close(
    recipe: ScoreRecipe, chosen: list[Scorer], shards: list[Path], num_scored: int, num_damaged: int, seconds: float
) -> None:
    rows: list[tuple[str, ...]] = []
    for scorer in chosen:
        tables = [pq.read_table(table_path(recipe.out, scorer.name, shard)) for shard in shards]
        table = pa.concat_tables(tables, promote_options="default")
        for name in table.column_names[2:]:
            values = table[name].to_numpy()
            quantiles = np.nanquantile(values, [0.05, 0.5, 0.95]) if np.isfinite(values).any() else [np.nan] * 3
            rows.append((f"{scorer.name}.{name}", *(f"{value:.3g}" for value in quantiles)))
    title = f"{num_scored:,} pairs scored in {seconds:.1f} s, {num_damaged:,} damaged"
    show_table(title, ["column", "5%", "median", "95%"], rows)
