"""Between tower and language model: pool the grid, put the features on one scale, project."""

import torch
from torch import nn
from torch.nn import functional

from rebus.errors import ConfigError
from rebus.model.config import ModelConfig


class Connector(nn.Module):
    """Features [N, side^2, C] -> image tokens [N, tokens_per_side^2, width] in the language model's width.

    feature_mean and feature_std [C] (buffers, saved with the weights) put every channel on one scale before
    anything learned: convolutional features are sparse and differ in scale a hundredfold. Identity until
    `set_statistics` is called.
    """

    feature_mean: torch.Tensor
    feature_std: torch.Tensor

    def __init__(self, config: ModelConfig, num_features: int, feature_width: int, width: int) -> None:
        super().__init__()
        self.side = _side(num_features, config)
        self.tokens_per_side = config.tokens_per_side
        self.num_features, self.feature_width = num_features, feature_width
        self.register_buffer("feature_mean", torch.zeros(feature_width))
        self.register_buffer("feature_std", torch.ones(feature_width))
        self.norm = nn.LayerNorm(feature_width) if config.connector_norm else nn.Identity()
        self.mlp = _mlp(config.connector, feature_width, width)

    @torch.no_grad()
    def set_statistics(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        """mean, std: [C], taken over the training features; a dead channel's std is raised to 1e-3 of the mean std."""
        self.feature_mean.copy_(mean)
        self.feature_std.copy_(std.clamp_min(1e-3 * float(std.mean())))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        features = (self.pool(features) - self.feature_mean) / self.feature_std
        return self.mlp(self.norm(features))

    def pool(self, features: torch.Tensor) -> torch.Tensor:
        """[N, side^2, C] -> [N, tokens_per_side^2, C], row by row, as adaptive average pooling does."""
        if self.side == self.tokens_per_side:
            return features
        grid = features.unflatten(1, (self.side, self.side)).permute(0, 3, 1, 2)  # [N, C, side, side]
        return functional.adaptive_avg_pool2d(grid, self.tokens_per_side).flatten(2).transpose(1, 2)


def _side(num_features: int, config: ModelConfig) -> int:
    side = round(num_features**0.5)
    if side * side != num_features:
        raise ConfigError(f"the tower makes {num_features} features an image, which is no square grid to pool.")
    if config.tokens_per_side > side:
        raise ConfigError(
            f"tokens_per_side is {config.tokens_per_side}, but the tower's grid is {side} x {side}: "
            f"choose at most {side}, or a larger image_size."
        )
    return side


def _mlp(name: str, feature_width: int, width: int) -> nn.Sequential:
    """`linear`, or `mlpNx_gelu`: N linear layers; state names mlp.0, mlp.2, ... as LLaVA's."""
    depth = 1 if name == "linear" else int(name[3])
    layers: list[nn.Module] = [nn.Linear(feature_width, width)]
    for _ in range(depth - 1):
        layers += [nn.GELU(), nn.Linear(width, width)]
    return nn.Sequential(*layers)
