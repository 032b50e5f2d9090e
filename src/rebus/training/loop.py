"""`rebus train`: functions called in order. Everything that a step needs follows from its number, so resuming is
loading the last state and going on; there is no cursor to restore."""

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from rebus.batches.batch import Batch
from rebus.batches.feed import Feed
from rebus.batches.loader import iterate_batches
from rebus.batches.order import num_steps_for
from rebus.checkpoints.save import language_fingerprint, model_fingerprint, save_model
from rebus.checkpoints.state import latest_state, prune_states, save_state
from rebus.config import dump_recipe
from rebus.errors import DataError
from rebus.fingerprint import Manifest, is_current, prepare_out, read_manifest, write_manifest
from rebus.log import progress_bar, say, show_table
from rebus.mesh import Mesh, join_mesh, leave_mesh, wait_for_all
from rebus.model.families import VisionLanguageModel
from rebus.towers.config import tower_fingerprint
from rebus.training.config import TrainRecipe
from rebus.training.damage import Quarantine, Tally, meet, open_quarantine, stop_above
from rebus.training.metrics import StepRow, append_row, read_rows, rewind
from rebus.training.optimizer import build_optimizer, optimizer_tensors, restore_optimizer, set_lr
from rebus.training.parts import freeze_all_but
from rebus.training.schedule import lr_share
from rebus.training.start import open_start
from rebus.training.step import train_step

FORMAT = 2
"""Part of what makes a run: count it up when the same recipe trains on other batches or in another order."""

NOT_SHAPING = {
    *("out", "plan", "init", "feature_cache", "shard_cache", "shard_cache_gb", "save_every", "keep_states"),
    *("num_threads", "num_workers", "prefetch", "max_bad_share"),
}
"""What a recipe may change about a run that goes on: it changes no weight."""


@dataclass(frozen=True)
class Progress:
    """What adds up over a run's steps and comes back with its state."""

    tokens_total: int = 0
    tally: Tally = field(default_factory=Tally)


@dataclass(frozen=True)
class Run:
    """What stays the same over a run's steps."""

    recipe: TrainRecipe
    feed: Feed
    model: VisionLanguageModel
    trainable: dict[str, torch.nn.Parameter]
    optimizer: torch.optim.AdamW
    num_steps: int
    mesh: Mesh

    @property
    def states(self) -> Path:
        return self.recipe.out / "states"

    @property
    def metrics(self) -> Path:
        return self.recipe.out / "metrics.jsonl"

    @property
    def quarantine(self) -> Path:
        return self.recipe.out / "quarantine.jsonl"


def run(recipe: TrainRecipe) -> Path:
    """Trains, or goes on training, until the recipe's last step; the checkpoint in `recipe.out` is then whole."""
    manifest = describe(recipe)
    if is_current(recipe.out, manifest):
        say(f"{recipe.out} is up to date")
        return recipe.out
    mesh = join_mesh()
    try:
        if mesh.is_main:
            prepare_out(recipe.out, manifest)
            dump_recipe(recipe, recipe.out / "recipe.yaml")
        wait_for_all(mesh)
        this = open_run(recipe, mesh)
        train(this)
        if mesh.is_main:
            finish(this, manifest)
        wait_for_all(mesh)
    finally:
        leave_mesh(mesh)
    return recipe.out


def describe(recipe: TrainRecipe) -> Manifest:
    """What this run makes, before it is made: everything that shapes the weights, nothing else."""
    inputs = {"plan": read_manifest(recipe.plan, "plan").fingerprint}
    if recipe.init is not None:
        inputs["init"] = model_fingerprint(recipe.init)
    if recipe.model is not None:
        inputs["language"] = language_fingerprint(recipe.model.language)
        inputs["tower"] = tower_fingerprint(recipe.model.tower)
    return Manifest("checkpoint", {"format": FORMAT, **recipe.model_dump(mode="json", exclude=NOT_SHAPING)}, inputs)


def open_run(recipe: TrainRecipe, mesh: Mesh) -> Run:
    """Plan, model and optimizer, ready for step 0."""
    if recipe.num_threads is not None:
        torch.set_num_threads(recipe.num_threads)
    torch.manual_seed(recipe.seed)
    feed, model = open_start(recipe)
    trainable = freeze_all_but(model, recipe.trains)
    optimizer = build_optimizer(trainable, recipe.trains, recipe.optimizer)
    num_steps = recipe.steps or num_steps_for(
        recipe.epochs or 0, num_packs=feed.num_packs, packs_per_step=recipe.packs_per_step
    )
    return Run(recipe, feed, model.to(recipe.device).train(), trainable, optimizer, num_steps, mesh)


def train(this: Run) -> None:
    """Steps from the last saved state to the end. Raises: DataError where too many documents are damaged."""
    first, progress = resume(this)
    quarantine = open_quarantine(this.quarantine) if this.mesh.is_main else None
    steps = iterate_batches(
        this.feed,
        range(first, this.num_steps),
        packs_per_step=this.recipe.packs_per_step,
        seed=this.recipe.seed,
        mesh=this.mesh,
        num_workers=this.recipe.num_workers,
        prefetch=this.recipe.prefetch,
        pin=this.recipe.device == "cuda",
    )
    with progress_bar() as bar, closing(steps):
        task = bar.add_task("training", total=this.num_steps, completed=first, note="")
        for step, batches, wait_seconds in _timed(steps):
            tally = _judge(this, batches, progress.tally, quarantine)
            tokens_total, note = progress.tokens_total, "every document of this step is damaged"
            if tally.num_whole > progress.tally.num_whole:  # else there is nothing to train on: no update, no row
                row = _one_step(this, step, batches, tokens_total, wait_seconds)
                tokens_total, note = row.tokens_total, f"loss {row.loss:.3f}  {row.tokens_per_second:,.0f} tokens/s"
                if this.mesh.is_main:
                    append_row(this.metrics, row)
            progress, done = Progress(tokens_total, tally), step + 1
            if done % this.recipe.save_every == 0 or done == this.num_steps:
                save(this, done, progress)
            bar.update(task, completed=done, note=note)


def _judge(this: Run, batches: list[Batch], tally: Tally, quarantine: Quarantine | None) -> Tally:
    """Counts and lists what could not be loaded before a step trains on the rest. Raises: DataError above the share."""
    num_whole, damages = meet(batches, this.mesh)
    if quarantine is not None:
        quarantine.add(damages)
    tally = tally.plus(num_whole, damages)
    stop_above(this.recipe.max_bad_share, tally, this.quarantine)
    return tally


def _one_step(this: Run, step: int, batches: list[Batch], tokens_total: int, wait_seconds: float) -> StepRow:
    recipe, started = this.recipe, time.monotonic()
    torch.manual_seed(recipe.seed * 1_000_003 + step * this.mesh.world + this.mesh.rank)  # dropout, by arithmetic
    share = lr_share(step, this.num_steps, recipe.schedule)
    set_lr(this.optimizer, share)
    result = train_step(
        this.model,
        batches,
        this.optimizer,
        max_grad_norm=recipe.optimizer.max_grad_norm,
        mesh=this.mesh,
    )
    return StepRow(
        step=step,
        epoch=(step + 1) * recipe.packs_per_step / this.feed.num_packs,
        loss=result.loss,
        grad_norm=result.grad_norm,
        lr=share * max(group["peak_lr"] for group in this.optimizer.param_groups),
        num_tokens=result.num_tokens,
        num_supervised=result.num_supervised,
        num_visual=0,
        num_documents=sum(batch.num_documents for batch in batches),
        num_images=sum(batch.num_images for batch in batches),
        tokens_total=tokens_total + result.num_tokens,
        step_seconds=time.monotonic() - started + wait_seconds,
        phases={"wait": wait_seconds},
    )


def _timed(steps: Iterator[tuple[int, list[Batch]]]) -> Iterator[tuple[int, list[Batch], float]]:
    """Adds to every step how long the loop waited for its data, in seconds."""
    while True:
        started = time.monotonic()
        try:
            step, batches = next(steps)
        except StopIteration:
            return
        yield step, batches, time.monotonic() - started


def save(this: Run, done: int, progress: Progress) -> None:
    """Writes the state after `done` steps, whole or not at all, and prunes old ones. Rank 0 holds all there is."""
    if this.mesh.is_main:
        save_state(
            this.states,
            step=done,
            weights={name: parameter.detach() for name, parameter in this.trainable.items()},
            optimizer=optimizer_tensors(this.optimizer, this.trainable),
            meta=asdict(progress),
        )
        prune_states(this.states, keep=this.recipe.keep_states)
    wait_for_all(this.mesh)


def resume(this: Run) -> tuple[int, Progress]:
    """Restores the last whole state, if there is one. Returns the next step and what added up before it."""
    state = latest_state(this.states)
    first = state.step if state is not None else 0
    if this.mesh.is_main:
        rewind(this.metrics, first)
    if state is None:
        return 0, Progress()
    with torch.no_grad():
        for name, parameter in this.trainable.items():
            parameter.copy_(state.weights[name])
    restore_optimizer(this.optimizer, this.trainable, state.optimizer)
    say(f"going on from step {first:,} of {this.num_steps:,}")
    return first, Progress(state.meta["tokens_total"], Tally(**state.meta["tally"]))


def finish(this: Run, manifest: Manifest) -> None:
    """Writes the servable checkpoint, then its manifest, and prints what was trained. Raises: DataError for nothing."""
    rows = read_rows(this.metrics)
    if not rows:
        raise DataError(f"nothing was trained: every document is damaged. {this.quarantine} says why of each.")
    facts = {"steps": this.num_steps, "tokens_trained": rows[-1].tokens_total, "final_loss": rows[-1].loss}
    save_model(this.model, this.feed.plan.tokens.model_dump(mode="json"), this.recipe.out)
    write_manifest(this.recipe.out, Manifest(manifest.kind, manifest.made_by, manifest.inputs, facts))
    _close(this, rows)


def _close(this: Run, rows: list[StepRow]) -> None:
    tenth = max(len(rows) // 10, 1)
    seconds = sum(row.step_seconds for row in rows)
    num_trainable = sum(parameter.numel() for parameter in this.trainable.values())
    show_table(
        f"trained {', '.join(this.recipe.trains)} for {this.num_steps:,} steps",
        ["", "value"],
        [
            ("trainable parameters", num_trainable),
            ("tokens", rows[-1].tokens_total),
            ("epochs", f"{rows[-1].epoch:.2f}"),
            ("loss, first tenth of steps", f"{sum(row.loss for row in rows[:tenth]) / tenth:.3f}"),
            ("loss, last tenth of steps", f"{sum(row.loss for row in rows[-tenth:]) / tenth:.3f}"),
            ("tokens/s", f"{rows[-1].tokens_total / seconds:,.0f}"),
            ("share of time waiting for data", f"{sum(row.wait_seconds for row in rows) / seconds:.1%}"),
        ],
    )
