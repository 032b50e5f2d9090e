"""What the model reads: documents end to end, no padding."""

import math
from dataclasses import dataclass, replace
from functools import cache

import torch

from rebus.pictures.config import ImageConfig
from rebus.records import Damage

IGNORE = -100
"""Label of a position that predicts nothing that counts."""

TENSORS = ("positions", "pixels")
"""What travels to the device. The rest are small whole numbers that layouts and choices are computed from: they stay on
the host, so that no kernel is waited for; of ids and labels the model sends what it needs."""


@dataclass(frozen=True)
class Batch:
    """T tokens, S stretches of them that attend to nothing else, D documents, N pictures (a video may be one).

    ids: int64 [T], -1 at image slots. labels: int64 [T], the target predicted AT position t (already shifted), IGNORE
    where none; never of the next stretch. positions: int64 [T], from 0 in each stretch, or [3, T] (tokens.positions).
    bounds: int32 [S + 1]. A stretch is a document, or a whole pack where the plan is `cross_document`.
    pixels: uint8 [R, *row_shape] as `image` says, normalised on the way to the device; or float32 as the model takes
    them (`image` is None): the same, or features [N, tokens, C]. slots: int64 [N, 2], start and length in T.
    grids: int64 [N, 3], how each picture's rows lie (pictures.prepare.Grid).
    uids, keys: of the D documents. damage: documents of the packs that could not be loaded.
    """

    ids: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    bounds: torch.Tensor
    pixels: torch.Tensor
    slots: torch.Tensor
    grids: torch.Tensor
    uids: tuple[str, ...]
    keys: tuple[str, ...]
    damage: tuple[Damage, ...] = ()
    image: ImageConfig | None = None

    @property
    def num_tokens(self) -> int:
        return self.ids.numel()

    @property
    def num_documents(self) -> int:
        return len(self.keys)

    @property
    def num_images(self) -> int:
        return self.slots.shape[0]

    @property
    def num_supervised(self) -> int:
        return int((self.labels != IGNORE).sum())

    @property
    def names(self) -> tuple[str, ...]:
        """A name for each stretch between `bounds`, for messages; none where stretches hold several documents."""
        return self.keys if len(self.keys) == len(self.bounds) - 1 else ()

    def pin(self) -> "Batch":
        """The same batch in page-locked memory, which a GPU copies while it computes; itself where there is no CUDA."""
        if not torch.cuda.is_available():
            return self
        return replace(self, **{name: getattr(self, name).pin_memory() for name in TENSORS})

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch with its tensors on `device` and its pixels as the model takes them."""
        tensors = {name: getattr(self, name).to(device, non_blocking=True) for name in TENSORS}
        if self.image is not None:
            tensors["pixels"] = normalised(tensors["pixels"], self.image)
        return replace(self, **tensors, image=None)


@cache
def _colour(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """On a device once: sending it waits for all that the device still computes."""
    return torch.tensor(values, dtype=torch.float32, device=device)


def normalised(pixels: torch.Tensor, image: ImageConfig) -> torch.Tensor:
    """uint8 [R, *row_shape] -> float32, bit for bit what pictures.normalise makes; a quarter of the bytes travelled."""
    mean, std = (_colour(tuple(values), pixels.device) for values in (image.mean, image.std))
    per_channel = math.prod(image.row_shape) // 3
    shape = (3, 1, 1) if len(image.row_shape) == 3 else (3, 1)
    planes = pixels.contiguous() if len(image.row_shape) == 3 else pixels.view(-1, 3, per_channel)
    return ((planes.float() - mean.view(shape)) / std.view(shape)).view(-1, *image.row_shape)
