"""EfficientNet-Lite0, and how any convolutional network becomes a tower."""

import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rebus.errors import ConfigError
from rebus.towers.config import TowerConfig, required_weights, single_file

if TYPE_CHECKING:
    import torch


def grid_tower(maps: "torch.nn.Module", num_tokens: int, width: int) -> "torch.nn.Module":
    """Wraps a convolutional network [B, 3, H, W] -> [B, width, h, w] as a tower."""
    import torch

    class GridTower(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            # Channels last: 43 pictures a second on one core against 27 (Lite0, 224 pixels).
            self.maps = maps.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.num_tokens, self.width = num_tokens, width

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            weight = next(self.maps.parameters())
            grid = self.maps(pixels.to(weight.dtype).contiguous(memory_format=torch.channels_last))
            return grid.flatten(2).transpose(1, 2)  # [B, h * w, width]

    return GridTower()


def build_efficientnet(config: TowerConfig, *, with_weights: bool = True) -> "torch.nn.Module":
    """EfficientNet-Lite0 (TensorFlow's mobile variant, ReLU6, no squeeze-excite): 1280 x 7 x 7 at 224 pixels."""
    import safetensors.torch

    weights = single_file(required_weights(config)) if with_weights else None
    if importlib.util.find_spec("efficientnet_lite_pytorch") is None:
        raise ConfigError(
            "tower 'efficientnet_lite0' needs a package: pip install --no-deps efficientnet-lite-pytorch==0.1.0"
        )
    if config.image_size % 32:
        raise ConfigError(f"image_size {config.image_size} is no multiple of 32, the stride of efficientnet_lite0.")
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0", image_size=config.image_size)
    if weights is not None:
        network.load_state_dict(safetensors.torch.load_file(weights))
    maps = _folded(network.eval())
    return grid_tower(maps, num_tokens=(config.image_size // 32) ** 2, width=1280)


def _folded(network: "torch.nn.Module") -> "torch.nn.Module":
    """The network up to its last feature map, each BatchNorm folded into the convolution before it."""
    import torch
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    class Residual(torch.nn.Module):
        def __init__(self, branch: torch.nn.Module) -> None:
            super().__init__()
            self.branch = branch

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return inputs + self.branch(inputs)

    def layers(module: torch.nn.Module, pairs: Sequence[tuple[str, str]], linear_end: bool) -> torch.nn.Sequential:
        chain: list[torch.nn.Module] = []
        for convolution, norm in pairs:
            chain += [fuse_conv_bn_eval(getattr(module, convolution), getattr(module, norm)), torch.nn.ReLU6(True)]
        return torch.nn.Sequential(*(chain[:-1] if linear_end else chain))

    chain: list[torch.nn.Module] = [layers(network, [("_conv_stem", "_bn0")], linear_end=False)]
    for block in network._blocks:  # type: ignore[union-attr]
        pairs = [("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")]
        if hasattr(block, "_expand_conv"):
            pairs.insert(0, ("_expand_conv", "_bn0"))
        branch = layers(block, pairs, linear_end=True)
        arguments = block._block_args
        is_residual = (
            block.id_skip and arguments.stride in (1, [1]) and arguments.input_filters == arguments.output_filters
        )
        chain.append(Residual(branch) if is_residual else branch)
    chain.append(layers(network, [("_conv_head", "_bn1")], linear_end=False))
    return torch.nn.Sequential(*chain)
