"""Parameter groups and AdamW: each part of the model learns at its own rate."""

from collections.abc import Iterator, Mapping

import torch
from torch import nn

from rebus.errors import ConfigError
from rebus.training.config import OptimizerConfig, Part, TrainsConfig
from rebus.training.parts import decays, part_of


def build_optimizer(
    trainable: dict[str, nn.Parameter], trains: Mapping[Part, TrainsConfig], config: OptimizerConfig
) -> torch.optim.AdamW:
    """AdamW with one group for each (part, decayed or not); every group remembers its peak rate as `peak_lr`."""
    return torch.optim.AdamW(list(_groups(trainable, trains)), betas=config.betas, eps=config.eps)


def _groups(trainable: dict[str, nn.Parameter], trains: Mapping[Part, TrainsConfig]) -> Iterator[dict]:
    for part, settings in trains.items():
        for decayed in (True, False):
            members = [
                p for name, p in trainable.items() if part_of(name, trains) == part and decays(name, p) == decayed
            ]
            if members:
                decay = settings.weight_decay if decayed else 0.0
                yield {"params": members, "lr": settings.lr, "peak_lr": settings.lr, "weight_decay": decay}


def set_lr(optimizer: torch.optim.Optimizer, share: float) -> None:
    """Sets every group to `share` of its peak rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * share


def optimizer_tensors(optimizer: torch.optim.Optimizer, trainable: dict[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    """The optimizer's state as a flat name -> tensor map (`<parameter>/exp_avg` ...), ready for safetensors."""
    return {
        f"{name}/{key}": value.detach().clone()
        for name, parameter in trainable.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, trainable: dict[str, nn.Parameter], tensors: dict[str, torch.Tensor]
) -> None:
    """Puts saved state back, where its parameter lies (the count of steps stays on the CPU, where AdamW keeps it); none
    was saved before the first update. Raises ConfigError where it belongs to other parameters."""
    if not tensors:
        return
    by_parameter: dict[str, dict[str, torch.Tensor]] = {}
    for path, value in tensors.items():
        name, _, key = path.rpartition("/")
        by_parameter.setdefault(name, {})[key] = value
    if set(by_parameter) != set(trainable):
        differing = sorted(set(by_parameter) ^ set(trainable))[:5]
        raise ConfigError(f"the saved optimizer state is of other parameters (first that differ: {differing}).")
    for name, state in by_parameter.items():
        device = trainable[name].device
        optimizer.state[trainable[name]] = {
            key: value if key == "step" else value.to(device) for key, value in state.items()
        }
