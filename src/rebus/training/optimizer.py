"""Parameter groups and optimizers: each part of the model learns at its own rate; states as plain named tensors.

An optimizer here is a tuple of torch's: Muon is for matrices inside blocks alone and has AdamW beside it.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from rebus.errors import ConfigError
from rebus.training.clip import local
from rebus.training.config import OptimizerConfig, Part, TrainsConfig
from rebus.training.parts import BLOCK, decays, part_of

Optimizers = tuple[torch.optim.Optimizer, ...]


def build_optimizer(
    trainable: Mapping[str, nn.Parameter], trains: Mapping[Part, TrainsConfig], config: OptimizerConfig
) -> Optimizers:
    """One group for each (part, decayed or not); every group remembers its peak rate as `peak_lr`, its part as `part`.

    Raises: ConfigError where `adamw_8bit` is asked for and torchao is not installed.
    """
    if config.kind != "muon":
        return (_adamw(list(_groups(trainable, trains)), config),)
    by_muon = {name: p for name, p in trainable.items() if is_inner_matrix(name, p)}
    by_adamw = {name: p for name, p in trainable.items() if name not in by_muon}
    optimizers = []
    if by_muon:
        optimizers.append(_muon(list(_groups(by_muon, trains)), config))
    if by_adamw:
        optimizers.append(_adamw(list(_groups(by_adamw, trains)), config))
    return tuple(optimizers)


def _groups(trainable: Mapping[str, nn.Parameter], trains: Mapping[Part, TrainsConfig]) -> Iterator[dict[str, Any]]:
    for part, settings in trains.items():
        for decayed in (True, False):
            mine = ((name, p) for name, p in trainable.items() if part_of(name, trains) == part)
            members = [p for name, p in mine if decays(name, p) == decayed]
            if members:
                decay = settings.weight_decay if decayed else 0.0
                rates = {"lr": settings.lr, "peak_lr": settings.lr, "weight_decay": decay}
                yield {"params": members, "part": part, **rates}


def _adamw(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
    if config.kind != "adamw_8bit":
        return torch.optim.AdamW(groups, betas=config.betas, eps=config.eps, fused=True)
    try:
        from torchao.optim import AdamW8bit
    except ImportError:
        raise ConfigError(
            "optimizer.kind 'adamw_8bit' needs torchao, which is not installed: pip install 'rebus[8bit]'. Or use "
            "'adamw', which takes 6 bytes more for each weight that learns."
        ) from None
    return AdamW8bit(groups, betas=config.betas, eps=config.eps)


def _muon(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
    """Updates are scaled to the size that AdamW's have, so one rate serves both (Liu et al. 2025, section 2.2)."""
    return torch.optim.Muon(groups, momentum=config.muon_momentum, adjust_lr_fn="match_rms_adamw")


def is_inner_matrix(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim == 2 and BLOCK.search(name) is not None


def set_lr(optimizers: Optimizers, share: float) -> float:
    """Sets every group to `share` of its peak rate. Returns the highest rate."""
    for group in groups_of(optimizers):
        _put_lr(group, group["peak_lr"] * share)
    return max(group["peak_lr"] * share for group in groups_of(optimizers))


def _put_lr(group: dict[str, Any], lr: float) -> None:
    """torchao holds its rates in tensors and refuses others in their place."""
    if isinstance(group["lr"], torch.Tensor):
        group["lr"].fill_(lr)
    else:
        group["lr"] = lr


def groups_of(optimizers: Optimizers) -> list[dict[str, Any]]:
    return [group for optimizer in optimizers for group in optimizer.param_groups]


def take_step(optimizers: Optimizers) -> None:
    for optimizer in optimizers:
        optimizer.step()


def drop_gradients(optimizers: Optimizers) -> None:
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)


def optimizer_tensors(optimizers: Optimizers, trainable: Mapping[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    """The optimizers' states as a flat map `<parameter>/exp_avg` -> tensor, each laid over the ranks as its parameter.

    States of 8 bits come as the float32 that they stand for, which any number of ranks can read.
    """
    states = {parameter: state for optimizer in optimizers for parameter, state in optimizer.state.items()}
    return {
        f"{name}/{key}": _plain(value)
        for name, parameter in trainable.items()
        for key, value in states.get(parameter, {}).items()
        if isinstance(value, torch.Tensor)
    }


def _plain(value: torch.Tensor) -> torch.Tensor:
    whole = value.to_local() if isinstance(value, DTensor) else value
    if not hasattr(whole, "codes"):
        return value
    floats = whole.dequantize().cpu()  # where they are written from: all of them at once would not fit the card
    if not isinstance(value, DTensor):
        return floats
    return DTensor(floats, value._spec, requires_grad=False)  # from_local would move it back


def make_states(optimizers: Optimizers) -> None:
    """Makes every state as the first step would, all zeros, and changes no weight: places to restore into."""
    rates = [float(group["lr"]) for group in groups_of(optimizers)]
    for group in groups_of(optimizers):
        _put_lr(group, 0.0)
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    take_step(optimizers)
    drop_gradients(optimizers)
    for group, rate in zip(groups_of(optimizers), rates, strict=True):
        _put_lr(group, rate)


def is_quantised(optimizers: Optimizers) -> bool:
    """Whether states lose something on their way through `optimizer_tensors`."""
    return any(
        hasattr(value.to_local() if isinstance(value, DTensor) else value, "codes")
        for optimizer in optimizers
        for state in optimizer.state.values()
        for value in state.values()
    )


@torch.no_grad()
def put_states(
    optimizers: Optimizers, trainable: Mapping[str, nn.Parameter], tensors: Mapping[str, torch.Tensor]
) -> None:
    """Copies the tensors of `optimizer_tensors` back into states that exist, quantised anew where of 8 bits."""
    states = {parameter: state for optimizer in optimizers for parameter, state in optimizer.state.items()}
    for path, value in tensors.items():
        name, _, key = path.rpartition("/")
        held = states[trainable[name]][key]
        if held is not value:
            local(held).copy_(local(value))
