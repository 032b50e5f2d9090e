"""Between tower and language model: pool the grid, put the features on one scale, project; or Qwen's merger."""

import itertools

import torch
from torch import nn
from torch.nn import functional

from rebus.errors import ConfigError
from rebus.model.config import ModelConfig
from rebus.pictures.config import AnyresConfig, ImageConfig, NativeConfig


class Connector(nn.Module):
    """Features [N, side^2, C] -> image tokens [N, tokens_per_side^2, width] in the language model's width.

    Pooling has no parameters, so one connector serves any number of tokens: 144 in pre-training, 729 in fine-tuning.
    feature_mean and feature_std [C] (buffers, saved with the weights) put every channel on one scale before
    anything learned: convolutional features are sparse and differ in scale a hundredfold. Identity until
    `set_statistics` is called. image_newline [width]: ends every row of tiles where the rule says so, else None.
    """

    feature_mean: torch.Tensor
    feature_std: torch.Tensor

    def __init__(self, config: ModelConfig, feature_width: int, width: int, *, has_newline: bool) -> None:
        super().__init__()
        self.feature_width = feature_width
        self.register_buffer("feature_mean", torch.zeros(feature_width))
        self.register_buffer("feature_std", torch.ones(feature_width))
        self.norm = nn.LayerNorm(feature_width) if config.connector_norm else nn.Identity()
        self.mlp = _mlp(config.connector, feature_width, width)
        self.image_newline = nn.Parameter(torch.randn(width) / width**0.5) if has_newline else None

    @torch.no_grad()
    def set_statistics(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        """mean, std: [C], taken over the training features; a dead channel's std is raised to 1e-3 of the mean std."""
        self.feature_mean.copy_(mean)
        self.feature_std.copy_(std.clamp_min(1e-3 * float(std.mean())))

    def forward(self, features: torch.Tensor, tokens_per_side: int) -> torch.Tensor:
        scaled = (pool(features, tokens_per_side) - self.feature_mean) / self.feature_std
        learned = next(self.parameters(), scaled)
        return self.mlp(self.norm(scaled.to(learned.dtype)))  # statistics stay float32 where weights are less


class Merger(nn.Module):
    """Patches [P, C], those of one token side by side -> tokens [P / merge^2, width] (Qwen2-VL, section 2.1)."""

    def __init__(self, config: ModelConfig, feature_width: int, width: int, merge_size: int) -> None:
        super().__init__()
        self.feature_width = feature_width
        joined = feature_width * merge_size**2
        is_rms = config.connector == "qwen2_5_merger"
        self.ln_q = nn.RMSNorm(feature_width, eps=1e-6) if is_rms else nn.LayerNorm(feature_width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(joined, joined), nn.GELU(), nn.Linear(joined, width))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.mlp(self.ln_q(features).view(-1, self.mlp[0].in_features))


def build_connector(config: ModelConfig, image: ImageConfig, tower: nn.Module, width: int) -> Connector | Merger:
    """The connector, its weights fresh. tower: carries num_tokens and width; width: of the language model.

    Raises: ConfigError where tower, connector and image rule do not fit one another.
    """
    _check_fit(config, image, tower)
    feature_width = int(tower.width)  # type: ignore[arg-type]
    if isinstance(image, NativeConfig):
        return Merger(config, feature_width, width, image.merge_size)
    check_grid(int(tower.num_tokens), image.tokens_per_side)  # type: ignore[arg-type]
    if config.connector == "identity" and feature_width != width:
        raise ConfigError(
            f"connector 'identity' needs features as wide as the language model: {feature_width}, {width}."
        )
    has_newline = isinstance(image, AnyresConfig) and image.merge == "spatial_unpad"
    return Connector(config, feature_width, width, has_newline=has_newline)


def _check_fit(config: ModelConfig, image: ImageConfig, tower: nn.Module) -> None:
    """Raises: ConfigError where the pixels that the rule makes are not those that the tower takes, or the positions
    not those that the language model turns by."""
    is_native = isinstance(image, NativeConfig)
    if is_native != config.connector.endswith("_merger"):
        raise ConfigError(f"connector '{config.connector}' does not go with images of kind '{image.kind}'.")
    if is_native != (config.mrope_section is not None):
        raise ConfigError(
            f"images of kind '{image.kind}' give {'three positions' if is_native else 'one position'} a token, but "
            f"mrope_section is {config.mrope_section}."
        )
    if not isinstance(image, NativeConfig):
        if image.size != config.tower.image_size:
            raise ConfigError(
                f"the image rule makes squares of {image.size} pixels, the tower sees {config.tower.image_size}. "
                "Set the rule's size or the tower's image_size."
            )
        return
    made, taken = (*image.row_shape, image.merge_size), (tower.config.row_width, tower.config.merge_size)  # type: ignore[union-attr]
    if made != taken:
        raise ConfigError(
            f"the image rule makes patches of {made[0]} values and merges {made[1]} x {made[1]} of them; the tower "
            f"takes {taken[0]} values and merges {taken[1]} x {taken[1]}. Both must come from one checkpoint."
        )


def check_grid(num_features: int, tokens_per_side: int) -> None:
    """Raises: ConfigError where a picture's features cannot be pooled to this many tokens a side."""
    side = round(num_features**0.5)
    if side * side != num_features:
        raise ConfigError(f"the tower makes {num_features} features an image, which is no square grid to pool.")
    if tokens_per_side > side:
        raise ConfigError(
            f"tokens_per_side is {tokens_per_side}, but the tower's grid is {side} x {side}: "
            f"choose at most {side}, or a larger image_size."
        )


def pool(features: torch.Tensor, tokens_per_side: int) -> torch.Tensor:
    """[N, side^2, C] -> [N, tokens_per_side^2, C], row by row, as adaptive average pooling does."""
    side = round(features.shape[1] ** 0.5)
    if side == tokens_per_side:
        return features
    grid = features.unflatten(1, (side, side)).permute(0, 3, 1, 2)  # [N, C, side, side]
    return functional.adaptive_avg_pool2d(grid, tokens_per_side).flatten(2).transpose(1, 2)


def _mlp(name: str, feature_width: int, width: int) -> nn.Sequential:
    """State names mlp.0, mlp.2, ... as LLaVA's. `fused_mlp` widens to four times the features first (Prismatic)."""
    if name == "identity":
        return nn.Sequential()
    if name == "fused_mlp":
        widths = [feature_width, 4 * feature_width, width, width]
    else:
        widths = [feature_width, *[width] * (1 if name == "linear" else int(name[3]))]
    layers: list[nn.Module] = []
    for inner, outer in itertools.pairwise(widths):
        layers += [nn.Linear(inner, outer), nn.GELU()]
    return nn.Sequential(*layers[:-1])
