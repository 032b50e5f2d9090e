"""What all ranks know of a step before they take it: one small sum of numbers that lie on the host."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rebus.batches.batch import Batch
from rebus.mesh import Mesh, sum_over_ranks


@dataclass(frozen=True)
class Totals:
    """A step's counts over all ranks and micro-batches. num_documents are whole ones, num_damaged could not be loaded.

    wants_stop: some rank was told to stop. is_written: every rank's share of the last state is on disk.
    """

    num_tokens: int
    num_supervised: int
    num_visual: int
    num_documents: int
    num_images: int
    num_damaged: int
    flops: float
    wants_stop: bool
    is_written: bool


def agree(
    batches: Sequence[Batch], mesh: Mesh, *, flops: float = 0.0, wants_stop: bool = False, is_written: bool = True
) -> Totals:
    """The same on every rank; each gives its own batches and flags."""
    mine = [
        sum(batch.num_tokens for batch in batches),
        sum(batch.num_supervised for batch in batches),
        sum(int(batch.slots[:, 1].sum()) for batch in batches),
        sum(bool(uid) for batch in batches for uid in batch.uids),
        sum(batch.num_images for batch in batches),
        sum(len(batch.damage) for batch in batches),
        flops,
        float(wants_stop),
        float(is_written),
    ]
    summed = sum_over_ranks(torch.tensor(mine, dtype=torch.float64), mesh).tolist()
    tokens, supervised, visual, documents, images, damaged = (int(count) for count in summed[:6])
    wants, written = summed[7] > 0, summed[8] == mesh.world
    return Totals(tokens, supervised, visual, documents, images, damaged, summed[6], wants, written)
