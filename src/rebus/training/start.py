"""Where a run starts: its plan opened, its model built, spread over the ranks and filled, its optimizer made."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from rebus.batches.feed import Feed, open_feed
from rebus.batches.loader import check_division
from rebus.batches.order import num_steps_for
from rebus.checkpoints.hub_folder import check_exportable
from rebus.checkpoints.save import language_fingerprint, model_fingerprint
from rebus.checkpoints.skeleton import open_skeleton
from rebus.checkpoints.state import StateWriter, latest_state
from rebus.errors import ConfigError
from rebus.fingerprint import MANIFEST, Manifest, holds_other, is_begun, read_manifest
from rebus.mesh import Mesh
from rebus.model.assemble import fill
from rebus.model.families import VisionLanguageModel
from rebus.towers.config import tower_fingerprint
from rebus.training.config import TrainRecipe
from rebus.training.devices import peak_here
from rebus.training.ema import start_average
from rebus.training.features import cached
from rebus.training.flops import Flops, flops_of
from rebus.training.heldout import open_heldout
from rebus.training.optimizer import Optimizers, build_optimizer
from rebus.training.parallel import distribute
from rebus.training.parts import by_part, freeze_all_but
from rebus.training.timing import Stopwatch

FORMAT = 3
"""Part of what makes a run: count it up when the same recipe trains on other batches or in another order."""

NOT_SHAPING = {
    *("out", "plan", "init", "feature_cache", "shard_cache", "shard_cache_gb", "save_every", "keep_states"),
    *("num_threads", "num_workers", "prefetch", "max_bad_share", "parallel", "activations", "compile", "async_save"),
    *("hub_folder", "stall_seconds", "heldout", "evals", "trackers", "project", "expected", "device"),
}
"""What a recipe may change about a run that goes on: it changes no weight, but for the last digits."""


@dataclass(frozen=True)
class Run:
    """What stays the same over a run's steps. parts: what learns, by part; average: of the weights, where asked for."""

    recipe: TrainRecipe
    mesh: Mesh
    device: str
    feed: Feed
    heldout: Feed | None
    model: VisionLanguageModel
    trainable: dict[str, torch.nn.Parameter]
    parts: dict[str, list[torch.nn.Parameter]]
    optimizers: Optimizers
    average: dict[str, torch.Tensor]
    num_steps: int
    flops: Flops
    peak_flops: float | None
    writer: StateWriter
    watch: Stopwatch = field(default_factory=Stopwatch)

    @property
    def states(self) -> Path:
        return self.recipe.out / "states"

    @property
    def metrics(self) -> Path:
        return self.recipe.out / "metrics.jsonl"

    @property
    def skipped(self) -> Path:
        return self.recipe.out / "skipped.jsonl"

    @property
    def quarantine(self) -> Path:
        return self.recipe.out / "quarantine.jsonl"


def describe(recipe: TrainRecipe) -> Manifest:
    """What this run makes, before it is made: everything that shapes the weights, nothing else."""
    inputs = {"plan": read_manifest(recipe.plan, "plan").fingerprint}
    if recipe.init is not None:
        inputs["init"] = model_fingerprint(recipe.init)
    if recipe.model is not None:
        inputs["language"] = language_fingerprint(recipe.model.language)
        inputs["tower"] = tower_fingerprint(recipe.model.tower)
    return Manifest("checkpoint", {"format": FORMAT, **recipe.model_dump(mode="json", exclude=NOT_SHAPING)}, inputs)


def refuse_other(recipe: TrainRecipe, manifest: Manifest) -> None:
    """Raises: ConfigError where `out` holds a run of other settings that has come to a state, or to its end."""
    out = recipe.out
    if is_begun(out, manifest) or not holds_other(out, manifest.kind):
        return
    state, is_whole = latest_state(out / "states"), (out / MANIFEST).is_file()
    if is_whole or state is not None:
        reached = "a whole checkpoint" if is_whole or state is None else f"the state after step {state.step:,}"
        rows = [f"{out} holds {reached} of another run:", *_differences(recipe)]
        rows.append(f"Name another `out`, take the settings in {out}/recipe.yaml, or add --replace to remove that run.")
        raise ConfigError("\n".join(rows))


def _differences(recipe: TrainRecipe) -> list[str]:
    """Of the settings that shape the weights, those that the recipe.yaml in `out` has otherwise."""
    try:
        there = _flat(yaml.safe_load((recipe.out / "recipe.yaml").read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError):
        return ["  its recipe cannot be read."]
    here = _flat(recipe.model_dump(mode="json", exclude=NOT_SHAPING))
    names = [name for name in {**there, **here} if name.split(".")[0] not in NOT_SHAPING]
    rows = [f"  {n}: {there.get(n)} there, {here.get(n)} here" for n in names if there.get(n) != here.get(n)]
    return rows or ["  the settings are equal: its plan or start was made anew, or another Rebus made it."]


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def open_run(recipe: TrainRecipe, mesh: Mesh) -> Run:
    """Plan, model and optimizer, ready for step 0."""
    check_division(recipe.packs_per_step, recipe.packs_per_batch, mesh)
    if recipe.num_threads is not None:
        torch.set_num_threads(recipe.num_threads)
    device = mesh.device(recipe.device)
    feed = open_feed(recipe.plan, shard_cache=recipe.shard_cache, shard_cache_gb=recipe.shard_cache_gb)
    model, trainable, flops = open_model(recipe, feed, mesh, device)
    if recipe.feature_cache is not None:
        standardise = recipe.standardise_features and recipe.model is not None
        feed = cached(feed, model, recipe.feature_cache, standardise=standardise)
    return Run(
        recipe=recipe,
        mesh=mesh,
        device=device,
        feed=feed,
        heldout=open_heldout(recipe.heldout.plan, feed) if recipe.heldout is not None else None,
        model=model.train(),
        trainable=trainable,
        parts=by_part(trainable, recipe.trains),
        optimizers=build_optimizer(trainable, recipe.trains, recipe.optimizer),
        average=start_average(trainable) if recipe.ema is not None else {},
        num_steps=num_steps_of(recipe, feed),
        flops=flops,
        peak_flops=peak * mesh.world if (peak := peak_here(recipe.device)) else None,
        writer=StateWriter(recipe.out / "states", mesh, keep=recipe.keep_states, is_async=recipe.async_save),
        watch=Stopwatch(device),
    )


def num_steps_of(recipe: TrainRecipe, feed: Feed) -> int:
    """As given, or what sees every pack of the plan so many times."""
    return recipe.steps or num_steps_for(
        recipe.epochs or 0, num_packs=feed.num_packs, packs_per_step=recipe.packs_per_step
    )


def open_model(
    recipe: TrainRecipe, feed: Feed, mesh: Mesh, device: str
) -> tuple[VisionLanguageModel, dict[str, torch.nn.Parameter], Flops]:
    """The model spread over the ranks with its weights, what of it learns by name, and what its steps cost.

    Shapes come first, weights last: each rank keeps only its own rows of them. The plan's image rule is the model's: a
    checkpoint may go on with another number of tokens or pixels. Raises: ConfigError where the model cannot follow it.
    """
    rules = feed.plan.tokens
    start = open_skeleton(
        recipe.init, recipe.model, image=rules.image, template=rules.template, seed=recipe.seed, lora=recipe.lora
    )
    model = start.model
    if recipe.hub_folder:
        check_exportable(model)
    trainable = freeze_all_but(model, recipe.trains)
    flops = flops_of(model, recipe.activations)
    distribute(model, recipe, mesh)
    rows_on = "cpu" if recipe.parallel.cpu_offload else None
    fill(model, start.tensors(), origin=start.origin, device=device, rows_on=rows_on)
    return model, {name: p for name, p in model.named_parameters() if name in trainable}, flops
