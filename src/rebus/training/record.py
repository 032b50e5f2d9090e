"""What a run tells of its steps, on rank 0: metrics.jsonl, trackers, the panel, evaluations beside the run."""

from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType

from rebus.checkpoints.save import save_model
from rebus.training.ema import averaged
from rebus.training.evaluate import Evaluations, checkpoint_at, is_due
from rebus.training.heldout import heldout_loss
from rebus.training.metrics import StepRow, append_row, read_rows
from rebus.training.panel import Panel
from rebus.training.resume import Progress
from rebus.training.start import Run
from rebus.training.stop import StopSignal
from rebus.training.trackers import open_trackers
from rebus.training.watchdog import Watchdog


class Record:
    """Entered on every rank after the run has resumed at step `first`; ranks other than 0 only walk along."""

    def __init__(self, this: Run, first: int, dog: Watchdog) -> None:
        recipe, mesh = this.recipe, this.mesh
        self._this, self._first, self._dog = this, first, dog
        self._trackers = open_trackers(recipe, recipe.out, first, mesh)
        self._panel = Panel(
            this.num_steps,
            title=f"{', '.join(this.parts)} -> {recipe.out}",
            place=f"{mesh.world} x {recipe.device}, {recipe.precision}",
            rows=read_rows(this.metrics) if mesh.is_main else (),
            is_main=mesh.is_main,
        )
        starts = recipe.evals is not None and mesh.is_main
        self._evaluations = Evaluations(recipe.evals, recipe.out, first=first) if starts and recipe.evals else None
        self._open = ExitStack()

    def __enter__(self) -> "Record":
        self._open.callback(self._trackers.close)
        self._open.enter_context(self._panel)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._open.close()

    def add(self, row: StepRow, progress: Progress) -> None:
        """After a step. Collective where the held-out loss is due; the watchdog hears of each of its batches."""
        this, heldout = self._this, self._this.recipe.heldout
        done = row.step + 1
        if heldout is not None and this.heldout is not None and (done % heldout.every == 0 or done == this.num_steps):
            with this.watch.phase("heldout"), averaged(this.average, this.trainable):
                row = replace(row, heldout=self._heldout_loss(row.step))
            this.watch.lap()  # no part of the next step's time
        if this.mesh.is_main:
            append_row(this.metrics, row)
            self._trackers.log(row)
            state = max(this.writer.sealed, self._first) or None
            self._panel.update(row, last_state=state, num_damaged=progress.tally.num_damaged)
            self._report_evaluations()

    def evaluate(self, done: int) -> None:
        """Saves a checkpoint and starts its evaluation, where one is due after `done` steps. A collective then."""
        this = self._this
        if is_due(this.recipe.evals, done):
            folder = checkpoint_at(this.recipe.out, done)
            with this.watch.phase("saving"), averaged(this.average, this.trainable):
                save_model(this.model, this.feed.plan.tokens.model_dump(mode="json"), folder)
            if self._evaluations is not None:
                self._evaluations.start(done, folder)

    def finish(self, stop: StopSignal) -> None:
        """Waits for the evaluations that are left, unless the run is told to stop."""
        if self._evaluations is not None:
            for result in self._evaluations.close(is_stopped=lambda: stop.is_set):
                self._trackers.log_eval(result.step, result.figures)

    def _heldout_loss(self, step: int) -> float:
        this, heldout = self._this, self._this.recipe.heldout
        assert heldout is not None
        assert this.heldout is not None
        return heldout_loss(
            this.model,
            this.heldout,
            num_packs=heldout.packs,
            packs_per_batch=this.recipe.packs_per_batch,
            mesh=this.mesh,
            device=this.device,
            after_batch=lambda: self._dog.beat(step),
        )

    def _report_evaluations(self) -> None:
        for result in self._evaluations.poll() if self._evaluations is not None else ():
            self._trackers.log_eval(result.step, result.figures)
