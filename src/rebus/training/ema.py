"""An exponential moving average of the weights that learn (Polyak and Juditsky 1992), each rank its own share."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from rebus.training.clip import local


def start_average(trainable: Mapping[str, torch.nn.Parameter]) -> dict[str, torch.Tensor]:
    """The average before the first step: the weights themselves."""
    return {name: parameter.detach().clone() for name, parameter in trainable.items()}


@torch.no_grad()
def follow(average: Mapping[str, torch.Tensor], trainable: Mapping[str, torch.nn.Parameter], decay: float) -> None:
    """average <- decay * average + (1 - decay) * weights, in place."""
    means, weights = [local(one) for one in average.values()], [local(one.detach()) for one in trainable.values()]
    torch._foreach_lerp_(means, weights, 1.0 - decay)


@contextmanager
def averaged(average: Mapping[str, torch.Tensor], trainable: Mapping[str, torch.nn.Parameter]) -> Iterator[None]:
    """While entered, the weights are their average, where there is one; then themselves again, bit for bit."""
    _swap(average, trainable)
    try:
        yield
    finally:
        _swap(average, trainable)


@torch.no_grad()
def _swap(average: Mapping[str, torch.Tensor], trainable: Mapping[str, torch.nn.Parameter]) -> None:
    for name, mean in average.items():
        weight, other = local(trainable[name]), local(mean)
        kept = weight.detach().clone()
        weight.copy_(other)
        other.copy_(kept)
