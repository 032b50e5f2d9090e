"""Several encoders of one picture, their features side by side on the channels (Prismatic VLMs, section 4.2)."""

from collections.abc import Sequence
from typing import Any

import torch

from rebus.errors import ConfigError
from rebus.pictures.config import Colour
from rebus.towers.config import TowerConfig


class FusedTower(torch.nn.Module):
    """Pixels float32 [B, 3, S, S], normalised by the image rule -> [B, num_tokens, sum of the parts' widths].

    A part that wants another normalisation than the rule's gets the same pixels through one affine a channel.
    """

    def __init__(self, config: TowerConfig, parts: Sequence[torch.nn.Module]) -> None:
        """config: of kind `fused`; parts: its towers, in its order. Raises: ConfigError where their grids differ."""
        super().__init__()
        counts: list[Any] = [part.num_tokens for part in parts]
        if len(set(counts)) != 1:
            raise ConfigError(f"fused towers must make equally many features of a picture; these make {counts}.")
        self.parts = torch.nn.ModuleList(parts)
        self.num_tokens, self.num_patches = counts[0], getattr(parts[0], "num_patches", counts[0])
        widths: list[Any] = [part.width for part in parts]
        self.width: int = sum(widths)
        self.affines = [_affine(config, part) for part in config.parts]

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        features = []
        for part, affine in zip(self.parts, self.affines, strict=True):
            seen = pixels
            if affine is not None:
                scale, shift = pixels.new_tensor(affine)[:, :, None, None]  # each [3, 1, 1]
                seen = pixels * scale + shift
            features.append(part(seen))
        return torch.cat(features, -1)


def _affine(whole: TowerConfig, part: TowerConfig) -> tuple[Colour, Colour] | None:
    """Scale and shift a channel that take pixels normalised as the whole says to what the part says: with x = colour,
    (x - m) / s = ((x - M) / S) * S / s + (M - m) / s."""
    if part.mean is None or part.std is None or whole.mean is None or whole.std is None:
        return None
    if (part.mean, part.std) == (whole.mean, whole.std):
        return None
    scale = tuple(outer / inner for outer, inner in zip(whole.std, part.std, strict=True))
    shift = tuple((outer - inner) / std for outer, inner, std in zip(whole.mean, part.mean, part.std, strict=True))
    return scale, shift  # type: ignore[return-value]
