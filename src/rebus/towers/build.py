"""One way to any encoder by its config."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from rebus.errors import ConfigError
from rebus.towers.config import TowerConfig
from rebus.towers.efficientnet import build_efficientnet, grid_tower
from rebus.towers.hub import build_transformers

if TYPE_CHECKING:
    import torch


def build_tower(config: TowerConfig, device: str = "cpu", *, with_weights: bool = True) -> "torch.nn.Module":
    """The encoder in eval mode, its parameters frozen, on `device`. with_weights: False takes random ones where an
    efficientnet_lite0's are not there yet: its shapes are known.

    Raises: ConfigError or DataError where a package or the weights are missing, or the image size does not fit.
    """
    if config.kind in ("qwen2_vl", "qwen2_5_vl"):
        raise ConfigError(f"a tower of kind '{config.kind}' comes with a whole checkpoint: load that.")
    builders: dict[str, Callable[[TowerConfig], torch.nn.Module]] = {
        "efficientnet_lite0": partial(build_efficientnet, with_weights=with_weights),
        "transformers": build_transformers,
        "fused": partial(_build_fused, with_weights=with_weights),
        "tiny": _build_tiny,
    }
    tower = builders[config.kind](config)
    return tower.eval().requires_grad_(False).to(device)


def _build_fused(config: TowerConfig, *, with_weights: bool) -> "torch.nn.Module":
    from rebus.towers.fused import FusedTower

    return FusedTower(config, [build_tower(part, with_weights=with_weights) for part in config.parts])


def _build_tiny(config: TowerConfig) -> "torch.nn.Module":
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        patches = torch.nn.Conv2d(3, 16, kernel_size=config.image_size // 4, stride=config.image_size // 4)
    return grid_tower(torch.nn.Sequential(patches, torch.nn.Tanh()), num_tokens=16, width=16)
