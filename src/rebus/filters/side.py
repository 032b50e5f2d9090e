"""One side of the network in training: a tower, frozen and looked through once, or alive; and its head."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rebus.fingerprint import write_atomically
from rebus.log import track

if TYPE_CHECKING:
    import torch

CHUNK = 128  # features are kept in files of so many: what a kill costs


class Side:
    """features(rows) -> [B, width]: from the tower or from what was kept of it. module: of the tower, or None where
    it is frozen. weight: of the projection [dim, width], None where there is none. scale, direction [width]: frozen
    features are divided by their deviation, and lose the direction of their mean, which is common to all and would
    make all cosines alike; both are folded into the projection in the end."""

    def __init__(
        self,
        features: "Callable[[np.ndarray], torch.Tensor]",
        module: "torch.nn.Module | None",
        weight: "torch.nn.Parameter | None",
        dropout: float = 0.0,
    ) -> None:
        self.features, self.module, self.weight, self.dropout = features, module, weight, dropout
        self.scale: torch.Tensor | None = None
        self.direction: torch.Tensor | None = None

    def standardise(self, features: "torch.Tensor") -> None:
        """Takes scale and direction from the frozen features [N, width] of all pairs that are trained on."""
        import torch

        deviation = features.std(dim=0)
        self.scale = 1 / deviation.clamp_min(1e-3 * deviation.mean())
        self.direction = torch.nn.functional.normalize((features * self.scale).mean(dim=0), dim=0)

    def embed(self, rows: np.ndarray, generator: "torch.Generator") -> "torch.Tensor":
        """Unit vectors [B, dim] of these pairs."""
        import torch

        vectors = self.features(rows)
        if self.scale is not None and self.direction is not None:
            vectors = vectors * self.scale
            vectors = vectors - torch.outer(vectors @ self.direction, self.direction)
        if self.dropout and self.module is None:
            kept = torch.rand(vectors.shape, generator=generator) >= self.dropout
            vectors = vectors * kept.to(vectors.device) / (1 - self.dropout)
        if self.weight is not None:
            vectors = torch.nn.functional.linear(vectors, self.weight)
        return torch.nn.functional.normalize(vectors, dim=-1)

    def folded(self) -> "torch.Tensor":
        """The projection [dim, width] that does the same to the tower's own features."""
        import torch

        assert self.weight is not None
        weight = self.weight.detach()
        if self.scale is None or self.direction is None:
            return weight
        return (weight - torch.outer(weight @ self.direction, self.direction)) * self.scale


def together(device: "torch.device") -> int:
    """How many go through a tower at once. One on a CPU: features are then the same to the bit whatever is asked for
    with them, and Lite0 is 2.5 times as fast as in batches of 32, which leave the cache."""
    return 1 if device.type == "cpu" else 64


def kept_features(
    encode: "Callable[[list[Any]], torch.Tensor]", items: Sequence[Any], folder: Path, description: str, size: int
) -> "torch.Tensor":
    """Features float32 [N, width] of a frozen tower, CHUNK a file in `folder`: what is there is not made
    again. size: how many at once."""
    import torch
    from safetensors.torch import load_file
    from safetensors.torch import save as to_bytes

    parts = []
    for start in track(range(0, len(items), CHUNK), description):
        path = folder / f"{start:09d}.safetensors"
        if not path.is_file():
            part = list(items[start : start + CHUNK])
            pieces = [part[at : at + size] for at in range(0, len(part), size)]
            with torch.inference_mode():
                features = torch.cat([encode(piece).float().cpu() for piece in pieces])
            write_atomically(path, to_bytes({"features": features.contiguous()}))
        parts.append(load_file(path)["features"])
    return torch.cat(parts)
