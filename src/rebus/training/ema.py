"""An exponential moving average of the weights that learn (Polyak and Juditsky 1992), each rank its own share."""

from collections.abc import Mapping

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


@torch.no_grad()
def adopt(average: Mapping[str, torch.Tensor], trainable: Mapping[str, torch.nn.Parameter]) -> None:
    """The weights become their average."""
    for name, parameter in trainable.items():
        local(parameter).copy_(local(average[name]))
