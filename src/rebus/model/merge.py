"""Token embeddings with image tokens in their slots, and the check that both stages counted alike."""

from collections.abc import Sequence

import torch

from rebus.errors import SlotMismatchError
from rebus.model.config import IMAGE_ID


def merge(
    embeddings: torch.Tensor,
    ids: torch.Tensor,
    images: torch.Tensor,
    lengths: Sequence[int],
    slots: torch.Tensor,
    bounds: torch.Tensor,
    keys: Sequence[str] = (),
) -> torch.Tensor:
    """Returns embeddings [T, H] with the tokens of N pictures [M, H] laid into slots [N, 2] (start, length).

    ids: int64 [T], IMAGE_ID at the slots. lengths: tokens of each picture, M in all. slots, bounds [D + 1] on the
    host, and best ids too; bounds and keys [D] only name the sample in an error.
    Raises: SlotMismatchError with both numbers and the sample's key.
    """
    where = _places(slots, lengths, bounds, keys)  # [M]
    _check_marks(ids, where.to(ids.device), bounds, keys)
    there = where.to(embeddings.device, non_blocking=True)
    return embeddings.index_copy(0, there, images.to(embeddings.dtype))


def _places(slots: torch.Tensor, lengths: Sequence[int], bounds: torch.Tensor, keys: Sequence[str]) -> torch.Tensor:
    """Every token of the sequence that a picture fills, int64 [M], in order."""
    if len(slots) != len(lengths):
        raise SlotMismatchError(
            f"the batch has {len(slots)} image slots but {len(lengths)} images"
            f"{_named(0, bounds, keys) if len(bounds) == 2 else ''}. Tokens and model must share one image config."
        )
    for (start, length), made in zip(slots.tolist(), lengths, strict=True):
        if length != made:
            raise SlotMismatchError(
                f"the slot at token {start}{_named(start, bounds, keys)} is {length} long, but the model makes {made} "
                "features of its picture. The image config must be one in tokens and model."
            )
    starts, counts = slots[:, 0], slots[:, 1]
    first = torch.repeat_interleave(starts - counts.cumsum(0) + counts, counts)
    return first + torch.arange(int(counts.sum()))


def _check_marks(ids: torch.Tensor, where: torch.Tensor, bounds: torch.Tensor, keys: Sequence[str]) -> None:
    """One look at where the ids lie: they mark the slots' places, and no others."""
    marks = ids == IMAGE_ID
    num_marks, num_met = torch.stack([marks.sum(), marks[where].sum()]).tolist()
    if num_marks == num_met == len(where):
        return
    wrong = torch.zeros_like(marks)
    wrong[where] = True
    first = int((wrong != marks).nonzero()[0])
    raise SlotMismatchError(
        f"the ids mark {num_marks} image places, the slots {len(where)}, of which {num_met} agree; "
        f"the first that does not is token {first}{_named(first, bounds, keys)}."
    )


def _named(token: int, bounds: torch.Tensor, keys: Sequence[str]) -> str:
    document = int(torch.searchsorted(bounds.contiguous(), token, right=True)) - 1
    return f" in sample '{keys[document]}'" if 0 <= document < len(keys) else ""
