"""Gradient norms, of every part and of all, over whatever ranks hold a share; and clipping that really clips."""

from collections.abc import Mapping, Sequence

import torch
from torch.distributed.tensor import DTensor, Shard


def local(tensor: torch.Tensor) -> torch.Tensor:
    """What this rank holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gradient_norms(parts: Mapping[str, Sequence[torch.nn.Parameter]]) -> torch.Tensor:
    """The 2-norm of each part's gradients over all ranks, float64 [P]; their own 2-norm is that of all gradients.

    A parameter without a gradient counts nothing. Squares are summed in float64, so the number of ranks does not show.
    """
    squares = torch.stack([_squares(members) for members in parts.values()])
    group = _sharded_over(next(iter(next(iter(parts.values())))))
    if group is not None:
        torch.distributed.all_reduce(squares, group=group)
    return squares.sqrt()


def scale_gradients(parameters: Sequence[torch.nn.Parameter], factor: float) -> None:
    """Multiplies all gradients in place."""
    gradients = [local(p.grad) for p in parameters if p.grad is not None]
    if factor != 1.0 and gradients:
        torch._foreach_mul_(gradients, factor)


def clip_factor(norm: float, max_norm: float) -> float:
    """What gradients of this norm are multiplied by: never more than 1."""
    return min(1.0, max_norm / (norm + 1e-6))


def _squares(parameters: Sequence[torch.nn.Parameter]) -> torch.Tensor:
    gradients = [local(one.grad) for one in parameters if one.grad is not None]
    if not gradients:
        return torch.zeros((), dtype=torch.float64, device=local(parameters[0]).device)
    return torch.stack(torch._foreach_norm(gradients, 2)).double().square().sum()


def _sharded_over(parameter: torch.Tensor) -> torch.distributed.ProcessGroup | None:
    """The ranks that hold the rest of what learns; None where each holds all."""
    if not isinstance(parameter, DTensor):
        return None
    dimension = next((n for n, kind in enumerate(parameter.placements) if isinstance(kind, Shard)), None)
    return None if dimension is None else parameter.device_mesh.get_group(dimension)
