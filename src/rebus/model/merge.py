"""Token embeddings with image tokens in their slots, and the check that both stages counted alike."""

from collections.abc import Sequence

import torch

from rebus.errors import SlotMismatchError
from rebus.model.config import IMAGE_ID


def merge(
    embeddings: torch.Tensor,
    ids: torch.Tensor,
    images: torch.Tensor,
    slots: torch.Tensor,
    bounds: torch.Tensor,
    keys: Sequence[str] = (),
) -> torch.Tensor:
    """Returns embeddings [T, H] with image tokens [N, n, H] laid into slots [N, 2] (start, length).

    ids: int64 [T], IMAGE_ID at the slots. bounds [D + 1] and keys [D] only name the sample in an error.
    Raises: SlotMismatchError with both numbers and the sample's key.
    """
    num_images, num_tokens = images.shape[:2]
    _check_slots(ids, slots, num_images, num_tokens, bounds, keys)
    where = (slots[:, :1] + torch.arange(num_tokens, device=slots.device)).flatten()  # [N * n]
    return embeddings.index_copy(0, where, images.flatten(0, 1).to(embeddings.dtype))


def _check_slots(
    ids: torch.Tensor,
    slots: torch.Tensor,
    num_images: int,
    num_tokens: int,
    bounds: torch.Tensor,
    keys: Sequence[str],
) -> None:
    if len(slots) != num_images:
        raise SlotMismatchError(
            f"the batch has {len(slots)} image slots but {num_images} images"
            f"{_named(0, bounds, keys) if len(bounds) == 2 else ''}. Tokens and model must share one image config."
        )
    for start, length in slots.tolist():
        num_marked = int((ids[start : start + length] == IMAGE_ID).sum())
        if length != num_tokens or num_marked != length:
            raise SlotMismatchError(
                f"the slot at token {start}{_named(start, bounds, keys)} is {length} long with {num_marked} places, "
                f"but the model makes {num_tokens} features an image. tokens_per_side must agree in tokens and model."
            )
    num_places = int((ids == IMAGE_ID).sum())
    if num_places != num_images * num_tokens:
        raise SlotMismatchError(
            f"the ids mark {num_places} image places, the slots {num_images * num_tokens}: a slot is missing or doubled"
            f"{_named(0, bounds, keys)}."
        )


def _named(token: int, bounds: torch.Tensor, keys: Sequence[str]) -> str:
    document = int(torch.searchsorted(bounds.contiguous(), token, right=True)) - 1
    return f" in sample '{keys[document]}'" if 0 <= document < len(keys) else ""
