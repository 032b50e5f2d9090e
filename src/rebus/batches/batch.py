"""What the model reads: documents end to end, no padding."""

from dataclasses import dataclass

import torch

from rebus.records import Damage

IGNORE = -100
"""Label of a position that predicts nothing that counts."""


@dataclass(frozen=True)
class Batch:
    """T tokens, D documents, N images.

    ids: int64 [T], -1 at image slots. labels: int64 [T], the target predicted AT position t (already shifted), IGNORE
    where none; never of the next document. positions: int64 [T], from 0 in each document. bounds: int32 [D + 1].
    pixels: float32 [N, 3, H, W], or [N, tokens, C] where the loader was given features. slots: int64 [N, 2], start
    and length in T. uids, keys: of the D documents. damage: documents of the packs that could not be loaded.
    """

    ids: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    bounds: torch.Tensor
    pixels: torch.Tensor
    slots: torch.Tensor
    uids: tuple[str, ...]
    keys: tuple[str, ...]
    damage: tuple[Damage, ...] = ()

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

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch with its tensors on `device`."""
        names = ("ids", "labels", "positions", "bounds", "pixels", "slots")
        tensors = {name: getattr(self, name).to(device, non_blocking=True) for name in names}
        return Batch(**tensors, uids=self.uids, keys=self.keys, damage=self.damage)
