"""Small heads on a frozen image embedding: aesthetic, NSFW and the like.

A probe is one safetensors file:

<i>.weight [out, in], <i>.bias [out]   its linear layers, in the order of the numbers i, whatever stands before them
                                       (`layers.0.weight`); a single layer may go without a number
mean, std [in]                         optional: the embedding is normalised by them first
metadata activation                    between the layers: none (default), relu, gelu, tanh, sigmoid
metadata output                        behind the last: none (default) or sigmoid

The numbers may have gaps: LAION's aesthetic predictor (layers 0, 2, 4, 6, 7, activation none) is such a file once its
state dict is imported.
"""

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rebus.errors import ConfigError, DataError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Probe:
    """layers: weight [out, in] and bias [out] of each, float32. Call it: [B, in] float32 -> [B]."""

    layers: "tuple[tuple[torch.Tensor, torch.Tensor | None], ...]"
    activation: "Callable[[torch.Tensor], torch.Tensor]"
    output: "Callable[[torch.Tensor], torch.Tensor]"
    mean: "torch.Tensor | None" = None
    std: "torch.Tensor | None" = None

    def __call__(self, embedding: "torch.Tensor") -> "torch.Tensor":
        from torch.nn.functional import linear

        states = embedding
        if self.mean is not None and self.std is not None:
            states = (states - self.mean) / self.std
        for number, (weight, bias) in enumerate(self.layers):
            states = linear(self.activation(states) if number else states, weight, bias)
        return self.output(states)[:, 0]


def load_probe(path: Path, width: int, device: str = "cpu") -> Probe:
    """width: of the embedding that it will see.

    Raises: DataError where the file is no probe; ConfigError where it was made for another width.
    """
    from safetensors import safe_open

    if path.suffix != ".safetensors" or not path.is_file():
        raise DataError(f"no probe at {path}: a .safetensors file is wanted. `rebus import` makes it of .pt and .pth.")
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name).float().to(device) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata() or {}
    mean, std = tensors.pop("mean", None), tensors.pop("std", None)
    if (mean is None) != (std is None):
        raise DataError(f"{path}: mean and std go together.")
    layers = _layers(tensors, path)
    found = int(layers[0][0].shape[1])
    if found != width:
        raise ConfigError(f"{path} is a probe of embeddings {found} wide; this model's are {width} wide.")
    activation, output = (_function(metadata.get(name, "none"), path) for name in ("activation", "output"))
    return Probe(tuple(layers), activation, output, mean, std)


def _layers(tensors: "dict[str, torch.Tensor]", path: Path) -> "list[tuple[torch.Tensor, torch.Tensor | None]]":
    numbered: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"(?:(?:.*\.)?(\d+)\.|(?:.*\.)?)(weight|bias)", name)
        if match is None or match[2] in numbered.get(int(match[1] or 0), {}):
            raise DataError(f"{path}: '{name}' is no tensor of a probe (<i>.weight, <i>.bias, mean, std).")
        numbered.setdefault(int(match[1] or 0), {})[match[2]] = tensor
    chain = [(layer.get("weight"), layer.get("bias")) for _, layer in sorted(numbered.items())]
    widths = [tuple(weight.shape) if weight is not None else () for weight, _ in chain]
    fits = all(len(shape) == 2 for shape in widths) and all(a[0] == b[1] for a, b in itertools.pairwise(widths))
    if not widths or not fits or widths[-1][0] != 1:
        raise DataError(
            f"{path}: its layers [out, in] are {widths}; each must feed the next, the last make one number."
        )
    return chain  # type: ignore[return-value]


def _function(name: str, path: Path) -> "Callable[[torch.Tensor], torch.Tensor]":
    import torch

    known: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "none": lambda states: states,
        "relu": torch.nn.functional.relu,
        "gelu": torch.nn.functional.gelu,
        "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
    }
    if name not in known:
        raise DataError(f"{path}: activation '{name}' is not known; known: {', '.join(known)}.")
    return known[name]
