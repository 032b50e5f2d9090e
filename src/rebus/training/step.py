"""One optimizer step. The loss is a sum over supervised tokens, divided once by their count over the whole step:
all micro-batches, all ranks (DESIGN contract 3)."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from rebus.batches.batch import Batch
from rebus.mesh import Mesh, sum_over_ranks
from rebus.model.families import VisionLanguageModel
from rebus.training.clip import clip_factor, gradient_norms, scale_gradients
from rebus.training.optimizer import Optimizers, drop_gradients, take_step
from rebus.training.parallel import sync_gradients
from rebus.training.timing import Stopwatch

Judge = Callable[[float, float], str | None]
"""(loss, gradient norm) -> why the step must not be taken, or None."""


@dataclass(frozen=True)
class StepResult:
    """What a step did, the same on all ranks. loss: mean over the step's supervised tokens, in nats. grad_norm,
    grad_norms: before clipping, of all and of each part. refused: why the weights were left as they were."""

    loss: float
    grad_norm: float
    grad_norms: dict[str, float]
    refused: str | None = None


def train_step(
    model: VisionLanguageModel,
    batches: Sequence[Batch],
    optimizers: Optimizers,
    parts: Mapping[str, Sequence[nn.Parameter]],
    *,
    num_supervised: int,
    max_grad_norm: float,
    device: str,
    mesh: Mesh,
    watch: Stopwatch,
    judge: Judge = lambda loss, norm: None,
    loss_scale: float = 1.0,
    reduce_every_batch: bool = False,
) -> StepResult:
    """Forward and backward over this rank's micro-batches, gradients summed over ranks, judged, clipped, one update.

    parts: the parameters that learn, by part. num_supervised: over all ranks (agree). loss_scale: of fp16.
    reduce_every_batch: ranks exchange gradients after each micro-batch, not once.
    """
    every = reduce_every_batch
    loss = accumulate(
        model, batches, num_supervised, device=device, watch=watch, loss_scale=loss_scale, reduce_every_batch=every
    )
    with watch.phase("communication"):
        sum_over_ranks(loss, mesh)
    with watch.phase("optimizer"):
        norms = gradient_norms(parts) / loss_scale
        mean_loss, *listed = torch.cat([loss[None] / num_supervised, norms.to(loss.device)]).tolist()
        norm = math.hypot(*listed)
        refused = judge(mean_loss, norm)
        if refused is None:
            everything = [parameter for members in parts.values() for parameter in members]
            scale_gradients(everything, clip_factor(norm, max_grad_norm) / loss_scale)
            take_step(optimizers)
        drop_gradients(optimizers)
    return StepResult(mean_loss, norm, dict(zip(parts, listed, strict=True)), refused)


def accumulate(
    model: VisionLanguageModel,
    batches: Sequence[Batch],
    num_supervised: int,
    *,
    device: str,
    watch: Stopwatch,
    loss_scale: float = 1.0,
    reduce_every_batch: bool = False,
) -> torch.Tensor:
    """Adds the gradients of this rank's micro-batches, each moved to the device when its turn comes; ranks exchange
    them once, in the last backward pass, unless `reduce_every_batch`. Returns this rank's SUM of token losses, float64
    []."""
    total = torch.zeros((), dtype=torch.float64, device=device)
    for number, batch in enumerate(batches):
        sync_gradients(model, reduce_every_batch or number == len(batches) - 1)
        with watch.phase("transfer"):
            there = batch.to(device)
        with watch.phase("forward"):
            loss_sum, _ = model(there)
        with watch.phase("backward"):
            (loss_sum / num_supervised * loss_scale).backward()
        total += loss_sum.detach()
    return total
