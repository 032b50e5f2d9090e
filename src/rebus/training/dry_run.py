"""`rebus train RECIPE --dry-run`: everything that a run decides before its first step, said and not done.

The model is built on the meta device, from configs alone: a 72B takes seconds and no memory, on a machine without a GPU
and before any weight is fetched. The plan is opened and its first micro-batch read, with every check of the real run.
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.initialization import no_init_weights

from rebus.batches.batch import Batch
from rebus.batches.feed import Feed, build_batch, open_feed
from rebus.batches.loader import check_division
from rebus.batches.order import step_packs
from rebus.checkpoints.hub_folder import check_exportable
from rebus.checkpoints.skeleton import open_skeleton
from rebus.checkpoints.state import latest_state
from rebus.errors import ConfigError
from rebus.fingerprint import is_current
from rebus.log import say, show_table
from rebus.mesh import Mesh
from rebus.model.families import VisionLanguageModel
from rebus.training.config import TrainRecipe
from rebus.training.heldout import open_heldout
from rebus.training.optimizer import build_optimizer, groups_of
from rebus.training.parts import freeze_all_but, part_of
from rebus.training.schedule import warmup_steps
from rebus.training.start import describe, num_steps_of, refuse_other

MOST_GPUS = 64


@dataclass(frozen=True)
class Learner:
    """A group of the optimizer. part, of: matrices or vectors (norms, biases) of which part. lr: its peak."""

    part: str
    of: str
    numel: int
    lr: float
    weight_decay: float


def dry_run(recipe: TrainRecipe) -> None:
    """Prints what `rebus train` would do with this recipe. Writes nothing, computes nothing, needs no weights.

    Raises: what the run itself would raise before its first step (ConfigError, DataError, StrangerError), but for what
    concerns the machine: GPUs that are not here, memory that does not suffice (`rebus budget` foretells that).
    """
    check_division(recipe.packs_per_step, recipe.packs_per_batch, Mesh(world=int(os.environ.get("WORLD_SIZE", "1"))))
    feed = open_feed(recipe.plan, shard_cache=recipe.shard_cache, shard_cache_gb=recipe.shard_cache_gb)
    if recipe.heldout is not None:
        open_heldout(recipe.heldout.plan, feed)
    model = open_shapes(recipe, feed)
    if recipe.hub_folder:
        check_exportable(model)
    trainable = freeze_all_but(model, recipe.trains)
    learners = list(group(trainable, recipe))
    batch = first_batch(recipe, feed)
    beginning = _beginning(recipe)
    show_table(
        "what trains", ["", "of", "parameters", "peak rate", "decay"], _part_rows(model, trainable, learners, recipe)
    )
    show_table("the run", ["", ""], [*_run_rows(recipe, feed), ("it begins", beginning)])
    show_table("first micro-batch", ["", ""], _batch_rows(batch))
    say("a dry run: nothing was computed or written")


def open_shapes(recipe: TrainRecipe, feed: Feed) -> VisionLanguageModel:
    """The model of a recipe under its plan's image rule, its parameters on the meta device."""
    tokens = feed.plan.tokens
    with no_init_weights():  # drawing values for parameters that hold none takes two thirds of the time
        start = open_skeleton(
            recipe.init,
            recipe.model,
            image=tokens.image,
            template=tokens.template,
            seed=recipe.seed,
            lora=recipe.lora,
            weights=False,
        )
    start.model.language.tie_weights()  # transformers counts that among drawing
    return start.model


def group(trainable: Mapping[str, nn.Parameter], recipe: TrainRecipe) -> Iterator[Learner]:
    """The optimizer's groups, made by the run's own function, of stand-ins with one number for each parameter."""
    small = {name: nn.Parameter(torch.zeros((1,) * parameter.ndim)) for name, parameter in trainable.items()}
    numel = {id(one): trainable[name].numel() for name, one in small.items()}
    for made in groups_of(build_optimizer(small, recipe.trains, recipe.optimizer)):
        kind = "vectors" if all(one.ndim < 2 for one in made["params"]) else "matrices"
        total = sum(numel[id(one)] for one in made["params"])
        yield Learner(made["part"], kind, total, made["lr"], made["weight_decay"])


def first_batch(recipe: TrainRecipe, feed: Feed) -> Batch:
    """What rank 0 trains on first, were it alone."""
    packs = step_packs(
        0,
        num_packs=feed.num_packs,
        packs_per_step=recipe.packs_per_step,
        seed=recipe.seed,
        blocks=feed.plan.blocks,
        costs=feed.plan.costs,
    )
    return build_batch(feed, packs[: recipe.packs_per_batch])


def _part_rows(
    model: VisionLanguageModel, trainable: Mapping[str, nn.Parameter], learners: list[Learner], recipe: TrainRecipe
) -> Iterator[tuple[str, str, int, str, str]]:
    """What learns, group by group, then what is frozen."""
    for one in learners:
        yield one.part, one.of, one.numel, f"{one.lr:.3g}", f"{one.weight_decay:.3g}"
    frozen: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        if name not in trainable:
            frozen[part_of(name, recipe.trains)] += parameter.numel()
    yield from ((f"{part}, frozen", "", numel, "", "") for part, numel in frozen.items())
    yield "learn, in all", "", sum(one.numel for one in learners), "", ""
    yield "all", "", sum(parameter.numel() for parameter in model.parameters()), "", ""


def _run_rows(recipe: TrainRecipe, feed: Feed) -> Iterator[tuple[str, object]]:
    facts, packs = feed.plan.manifest.facts, recipe.packs_per_step
    num_steps = num_steps_of(recipe, feed)
    yield "packs in the plan", feed.num_packs
    yield "fill", f"{facts['fill']:.1%} of {feed.plan.capacity:,} positions"
    yield "steps", num_steps
    yield "epochs", f"{num_steps * packs / feed.num_packs:.2f}"
    yield "packs a step", packs
    yield "documents a step", f"{packs * facts['num_documents'] / feed.num_packs:,.1f}"
    yield "tokens a step", f"{packs * facts['num_tokens'] / feed.num_packs:,.0f}"
    yield "processes that they divide among", _worlds(recipe)
    yield "learning rate", _schedule(recipe, num_steps)
    yield "optimizer", f"{recipe.optimizer.kind}, gradients clipped at {recipe.optimizer.max_grad_norm:g}"
    yield "device", _device(recipe)
    yield "states", f"every {recipe.save_every:,} steps to {recipe.out / 'states'}, {recipe.keep_states} kept"
    yield "checkpoint", str(recipe.out) + (f", and {recipe.out / 'hub'}" if recipe.hub_folder else "")


def _worlds(recipe: TrainRecipe) -> str:
    """A micro-batch is of packs_per_batch packs, and every process must have as many micro-batches as any other."""
    num_batches = recipe.packs_per_step // recipe.packs_per_batch
    return ", ".join(str(world) for world in range(1, MOST_GPUS + 1) if num_batches % world == 0)


def _schedule(recipe: TrainRecipe, num_steps: int) -> str:
    schedule, warmup = recipe.schedule, warmup_steps(num_steps, recipe.schedule)
    end = 1.0 if schedule.kind == "constant" else schedule.final_share
    return f"{schedule.kind}: warm-up of {warmup:,} steps, {end:.0%} of the peak at the end"


def _device(recipe: TrainRecipe) -> str:
    here = "" if recipe.device == "cpu" or torch.cuda.is_available() else " (none here)"
    sharing = f", {recipe.parallel.kind} over processes"
    return f"{recipe.device}{here}, {recipe.precision}, activations recomputed: {recipe.activations}{sharing}"


def _beginning(recipe: TrainRecipe) -> str:
    """What the run would do about what lies in `out`. Raises: DataError where it would refuse to touch that."""
    if not recipe.out.exists():
        return "at step 0"
    manifest = describe(recipe)
    if is_current(recipe.out, manifest):
        return f"not at all: {recipe.out} is up to date"
    try:
        refuse_other(recipe, manifest)
    except ConfigError as error:
        return f"not at all: {error}"
    state = latest_state(recipe.out / "states")
    return f"at step {state.step:,}, where it was stopped" if state is not None else "at step 0"


def _batch_rows(batch: Batch) -> Iterator[tuple[str, Any]]:
    num_visual = int(batch.slots[:, 1].sum())
    yield "documents", batch.num_documents
    yield "tokens", batch.num_tokens
    yield "  of pictures", num_visual
    yield "  trained on", batch.num_supervised
    yield "pictures", batch.num_images
    yield "pixels", " x ".join(str(size) for size in batch.pixels.shape)
    yield from (("damaged: " + one.reason, one.key) for one in batch.damage)
