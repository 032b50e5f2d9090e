"""`rebus train`: functions called in order. Everything that a step needs follows from its number, so resuming is
loading the last state and going on; there is no cursor to restore."""

import resource
import sys
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch

from rebus.batches.batch import Batch
from rebus.batches.loader import iterate_batches
from rebus.batches.order import packs_between
from rebus.checkpoints.hub_folder import write_hub_folder
from rebus.checkpoints.save import save_model
from rebus.config import dump_recipe
from rebus.errors import DataError
from rebus.fingerprint import Manifest, discard, is_current, prepare_out, write_manifest
from rebus.log import say
from rebus.mesh import is_first_process, join_mesh, leave_mesh, wait_for_all
from rebus.training.agree import Totals, agree
from rebus.training.config import TrainRecipe
from rebus.training.damage import Quarantine, damages_of, open_quarantine, stop_above
from rebus.training.ema import averaged, follow
from rebus.training.evaluate import finish_evaluations
from rebus.training.guard import Guard, list_skipped
from rebus.training.metrics import StepRow, read_rows
from rebus.training.optimizer import set_lr
from rebus.training.parallel import needs_group
from rebus.training.record import Record
from rebus.training.resume import Progress, resume, save
from rebus.training.schedule import lr_share
from rebus.training.start import Run, describe, open_run, refuse_other
from rebus.training.step import StepResult, train_step
from rebus.training.stop import StopSignal
from rebus.training.summary import show_summary
from rebus.training.watchdog import Watchdog


def run(recipe: TrainRecipe, *, anew: bool = False, replace: bool = False) -> Path:
    """Trains, or goes on training, until the recipe's last step; the checkpoint in `recipe.out` is then whole.

    anew: begins at step 0, whatever an earlier start left. replace: removes what another recipe left in `out`.
    Raises: ConfigError where that is worth something and neither is asked for; Stopped where a signal asked for it.
    """
    manifest = describe(recipe)
    if is_current(recipe.out, manifest) and not anew:
        say(f"{recipe.out} is up to date")
        if recipe.evals is not None and is_first_process():
            finish_evaluations(recipe.evals, recipe.out)
    else:
        if is_first_process() and not (anew or replace):  # another would look while this one already writes
            refuse_other(recipe, manifest)
        if not _run(recipe, manifest, anew):
            return recipe.out
    hub = recipe.out / "hub"
    if recipe.hub_folder and is_first_process() and not hub.is_dir():  # no other rank waits for it
        write_hub_folder(recipe.out, hub)
    return recipe.out


def _run(recipe: TrainRecipe, manifest: Manifest, anew: bool) -> bool:
    """To a whole checkpoint. Returns whether to go on: not where it was told to stop while evaluations went on."""
    started, mesh = time.monotonic(), join_mesh(recipe.device, always=needs_group(recipe))
    try:
        with StopSignal(mesh) as stop:
            if mesh.is_main:
                prepare_out(recipe.out, manifest)
                dump_recipe(recipe, recipe.out / "recipe.yaml")
            wait_for_all(mesh)
            this = open_run(recipe, mesh)
            done, progress = resume(this, anew=anew)
            dog = Watchdog(recipe.out, mesh, this.watch, recipe.stall_seconds)
            with Record(this, done, dog) as record:
                with dog:
                    done, progress = train(this, done, progress, record, stop, dog)
                    if done == this.num_steps:
                        save_checkpoint(this, manifest)
                        leave_mesh(mesh)  # all together: what follows is rank 0's alone
                record.finish(stop)
            if done < this.num_steps:
                raise stop.stopped(done, this.num_steps)
            if mesh.is_main:
                _show(this, progress, wall_seconds=time.monotonic() - started)
            return not stop.is_set
    finally:
        leave_mesh(mesh)


def train(
    this: Run, done: int, progress: Progress, record: Record, stop: StopSignal, dog: Watchdog
) -> tuple[int, Progress]:
    """Steps from the `done` ones to the end, or to where it was told to stop. Returns how many are done.

    Raises: DataError where too many documents are damaged, or too many steps in a row are not fit to be taken.
    """
    quarantine = open_quarantine(this.quarantine) if this.mesh.is_main else None
    with closing(_steps(this, done)) as steps:
        for step, batches in steps:
            dog.beat(step)
            totals = _agree(this, batches, stop)
            progress = _count(this, batches, totals, progress, quarantine)
            if totals.num_supervised:  # else all its documents are damaged: no update, no row
                progress = _one_step(this, step, batches, totals, progress, record)
            done = step + 1
            record.evaluate(done)  # before the state: what goes on from that has it behind it
            if done % this.recipe.save_every == 0 or done == this.num_steps or totals.wants_stop:
                with this.watch.phase("saving"):
                    save(this, done, progress)
            if totals.wants_stop:
                break
        this.writer.settle()
    return done, progress


def _steps(this: Run, first: int) -> Generator[tuple[int, list[Batch]], None, None]:
    """(step, this rank's micro-batches) to the last; how long the loop waits for them is counted."""
    steps = iterate_batches(
        this.feed,
        range(first, this.num_steps),
        packs_per_step=this.recipe.packs_per_step,
        packs_per_batch=this.recipe.packs_per_batch,
        seed=this.recipe.seed,
        mesh=this.mesh,
        num_workers=this.recipe.num_workers,
        prefetch=this.recipe.prefetch,
        pin=this.recipe.device == "cuda",
    )
    with closing(steps):
        while True:
            with this.watch.phase("wait"):
                found = next(steps, None)
            if found is None:
                return
            yield found


def _agree(this: Run, batches: list[Batch], stop: StopSignal) -> Totals:
    """What all ranks know of the step; a state that every rank has written is made whole on the way."""
    with this.watch.phase("communication"):
        totals = agree(
            batches,
            this.mesh,
            flops=sum(this.flops.of(batch) for batch in batches),
            wants_stop=stop.is_set,
            is_written=this.writer.is_written,
        )
    if totals.is_written:
        this.writer.seal()
    return totals


def _count(
    this: Run, batches: list[Batch], totals: Totals, progress: Progress, quarantine: Quarantine | None
) -> Progress:
    """Counts and lists what could not be loaded before a step trains on the rest. Raises: DataError above the share."""
    damages = damages_of(batches, this.mesh) if totals.num_damaged else []
    if quarantine is not None:
        quarantine.add(damages)
    tally = progress.tally.plus(totals.num_documents, damages)
    stop_above(this.recipe.max_bad_share, tally, this.quarantine)
    return replace(progress, tally=tally)


def _one_step(
    this: Run, step: int, batches: list[Batch], totals: Totals, progress: Progress, record: Record
) -> Progress:
    """One update, or none where the guard refuses it, and its row. Returns what has added up after it."""
    recipe, mesh = this.recipe, this.mesh
    torch.manual_seed(recipe.seed * 1_000_003 + step * mesh.world + mesh.rank)  # dropout, by arithmetic
    lr = set_lr(this.optimizers, lr_share(step, this.num_steps, recipe.schedule))
    guard = Guard(recipe.guard, progress.guard)
    result = train_step(
        this.model,
        batches,
        this.optimizers,
        this.parts,
        num_supervised=totals.num_supervised,
        max_grad_norm=recipe.optimizer.max_grad_norm,
        device=this.device,
        mesh=mesh,
        watch=this.watch,
        judge=progress.loss_scale.judge(guard.judge),
        loss_scale=progress.loss_scale.value,
        reduce_every_batch=recipe.parallel.reduce_every_batch,
    )
    if recipe.ema is not None and result.refused is None:
        follow(this.average, this.trainable, recipe.ema.decay)
    row = _row(this, step, totals, result, lr, progress)
    record.add(row, progress)
    if result.refused is not None:
        if mesh.is_main:
            list_skipped(this.skipped, step, result.refused, _packs(this, step), this.feed)
        guard.stop_if_hopeless(result.refused, this.skipped)
    return replace(
        progress,
        tokens_total=row.tokens_total,
        num_skipped=progress.num_skipped + row.is_skipped,
        guard=guard.state,
        loss_scale=progress.loss_scale.after(result.refused),
    )


def _packs(this: Run, step: int) -> list[int]:
    """The packs of a step, over all ranks."""
    first, number = step * this.recipe.packs_per_step, this.recipe.packs_per_step
    blocks = this.feed.plan.blocks
    return packs_between(first, first + number, this.feed.num_packs, this.recipe.seed, blocks).tolist()


def _row(this: Run, step: int, totals: Totals, result: StepResult, lr: float, progress: Progress) -> StepRow:
    phases = this.watch.lap()
    seconds = sum(phases.values())
    return StepRow(
        step=step,
        epoch=(step + 1) * this.recipe.packs_per_step / this.feed.num_packs,
        loss=result.loss,
        grad_norm=result.grad_norm,
        lr=lr,
        num_tokens=totals.num_tokens,
        num_supervised=totals.num_supervised,
        num_visual=totals.num_visual,
        num_documents=totals.num_documents,
        num_images=totals.num_images,
        tokens_total=progress.tokens_total + totals.num_tokens,
        step_seconds=seconds,
        phases=phases,
        flops=totals.flops,
        mfu=totals.flops / seconds / this.peak_flops if this.peak_flops else None,
        memory_gb=peak_memory(this.device) / 1e9,
        grad_norms=result.grad_norms,
        is_skipped=result.refused is not None,
    )


def peak_memory(device: str) -> int:
    """The most bytes held so far: of the GPU by tensors, else by the whole process."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def save_checkpoint(this: Run, manifest: Manifest) -> None:
    """Writes the servable checkpoint, then its manifest. A collective. Raises: DataError where nothing was trained."""
    rows = read_rows(this.metrics)
    if not rows:
        raise DataError(f"nothing was trained: every document is damaged. {this.quarantine} says why of each.")
    facts = {"steps": this.num_steps, "tokens_trained": rows[-1].tokens_total, "final_loss": rows[-1].loss}
    with this.watch.phase("saving"):
        if this.mesh.is_main:
            discard(this.recipe.out / "hub")  # of an earlier checkpoint
        with averaged(this.average, this.trainable):
            save_model(this.model, this.feed.plan.tokens.model_dump(mode="json"), this.recipe.out)
        if this.mesh.is_main:
            write_manifest(this.recipe.out, Manifest(manifest.kind, manifest.made_by, manifest.inputs, facts))
        wait_for_all(this.mesh)


def _show(this: Run, progress: Progress, *, wall_seconds: float) -> None:
    show_summary(
        read_rows(this.metrics),
        trains=list(this.parts),
        num_trainable=sum(parameter.numel() for parameter in this.trainable.values()),
        num_damaged=progress.tally.num_damaged,
        wall_seconds=wall_seconds,
    )
