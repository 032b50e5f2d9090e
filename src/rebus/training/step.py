"""One optimizer step. The loss is a sum over supervised tokens, divided once by their count over the whole step:
all micro-batches, all ranks (DESIGN contract 3)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from rebus.batches.batch import Batch
from rebus.errors import DataError
from rebus.mesh import Mesh
from rebus.model.families import VisionLanguageModel


@dataclass(frozen=True)
class StepResult:
    """What a step did. loss: mean over the step's supervised tokens, in nats; counts are over all ranks."""

    loss: float
    grad_norm: float
    num_supervised: int
    num_tokens: int


def train_step(
    model: VisionLanguageModel,
    micro_batches: Sequence[Batch],
    optimizer: torch.optim.Optimizer,
    *,
    max_grad_norm: float,
    mesh: Mesh,
) -> StepResult:
    """Forward and backward over this rank's micro-batches, each moved to the model's device when its turn comes;
    gradients summed over ranks, clipped, one update.

    Raises: DataError where no token of the step is supervised, or the loss or a gradient is not finite; the
    parameters are then as they were.
    """
    counts = torch.tensor(
        [sum(batch.num_supervised for batch in micro_batches), sum(batch.num_tokens for batch in micro_batches)]
    )
    _sum_over_ranks([counts], mesh)
    num_supervised, num_tokens = counts.tolist()
    if num_supervised == 0:
        raise DataError("no token of this step is supervised. `rebus show` on the plan shows its loss mask.")

    optimizer.zero_grad(set_to_none=True)
    loss = torch.zeros((), dtype=torch.float64)
    for batch in (one.to(model.device) for one in micro_batches):
        loss_sum, _ = model(
            batch.ids,
            batch.labels,
            batch.positions,
            batch.bounds,
            batch.pixels,
            batch.slots,
            batch.grids,
            batch.names,
        )
        (loss_sum / num_supervised).backward()
        loss += loss_sum.detach().double().cpu()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    _sum_over_ranks([loss, *(_gradient(p) for p in parameters)], mesh)

    grad_norm = nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    mean_loss = loss.item() / num_supervised
    if not (torch.isfinite(grad_norm) and torch.isfinite(loss)):
        raise DataError(f"loss {mean_loss} or gradient norm {grad_norm.item()} is not finite. Lower the learning rate.")
    optimizer.step()
    return StepResult(mean_loss, grad_norm.item(), num_supervised, num_tokens)


def _gradient(parameter: nn.Parameter) -> torch.Tensor:
    """The gradient; zeros where this rank's batches did not reach the parameter, so that ranks sum alike."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def _sum_over_ranks(tensors: list[torch.Tensor], mesh: Mesh) -> None:
    if mesh.world > 1:
        for tensor in tensors:
            torch.distributed.all_reduce(tensor)
