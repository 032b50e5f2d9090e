"""What a run resumes from: weights that learn, optimizer states, what added up. Everything else follows from the
number of the step, so there is no cursor and no random state to restore."""

import shutil
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from rebus.checkpoints.state import latest_state, restore
from rebus.log import say
from rebus.mesh import wait_for_all
from rebus.training.damage import Tally
from rebus.training.metrics import rewind
from rebus.training.optimizer import is_quantised, make_states, optimizer_tensors, put_states
from rebus.training.precision import START, LossScale
from rebus.training.start import Run


@dataclass(frozen=True)
class Progress:
    """What adds up over a run's steps and comes back with its state. guard: its memory, as JSON values."""

    tokens_total: int = 0
    num_skipped: int = 0
    tally: Tally = field(default_factory=Tally)
    guard: dict[str, Any] = field(default_factory=dict)
    loss_scale: LossScale = field(default_factory=LossScale)


def save(this: Run, done: int, progress: Progress) -> None:
    """Begins to write the state after `done` steps, once the one before it is whole. A collective."""
    states = optimizer_tensors(this.optimizers, this.trainable)
    this.writer.begin(done, _tensors(this, states), asdict(progress))
    if is_quantised(this.optimizers):  # the run goes on from what a resume would read
        put_states(this.optimizers, this.trainable, states)
    if not this.recipe.async_save:
        this.writer.settle()


def resume(this: Run, *, anew: bool = False) -> tuple[int, Progress]:
    """Restores the last whole state, if there is one. Returns the next step and what added up before it.

    anew: removes what an earlier start left instead.
    """
    if anew and this.mesh.is_main:
        shutil.rmtree(this.states, ignore_errors=True)
        this.quarantine.unlink(missing_ok=True)
        this.skipped.unlink(missing_ok=True)
    wait_for_all(this.mesh)
    state = latest_state(this.states, this.mesh)
    first = state.step if state is not None else 0
    if this.mesh.is_main:
        rewind(this.metrics, first)
    if state is None:
        scale = LossScale(START) if this.recipe.precision == "fp16" else LossScale()
        return 0, Progress(loss_scale=scale)
    if any(name.startswith("optimizer/") for name in state.names):
        make_states(this.optimizers)
    states = optimizer_tensors(this.optimizers, this.trainable)
    restore(state, _tensors(this, states))
    put_states(this.optimizers, this.trainable, states)
    if this.mesh.is_main:
        say(f"going on from step {first:,} of {this.num_steps:,}")
    return first, _progress(state.meta)


def _tensors(this: Run, states: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Everything of a state, by name; the tensors themselves, to be read or filled in place."""
    weights = {f"weights/{name}": parameter.detach() for name, parameter in this.trainable.items()}
    of_optimizer = {f"optimizer/{name}": tensor for name, tensor in states.items()}
    return weights | of_optimizer | {f"average/{name}": tensor for name, tensor in this.average.items()}


def _progress(meta: dict[str, Any]) -> Progress:
    return replace(Progress(**meta), tally=Tally(**meta["tally"]), loss_scale=LossScale(**meta["loss_scale"]))
