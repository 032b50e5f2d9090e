"""Documents -> Batch. Array operations over all documents at once; no Python loop over tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rebus.batches.batch import IGNORE, Batch
from rebus.errors import SlotMismatchError
from rebus.pictures.config import ImageConfig
from rebus.records import Damage
from rebus.tokens.encode import Encoded
from rebus.tokens.positions import token_positions


@dataclass(frozen=True)
class Document:
    """An encoded sample with what fills its image slots: rows [R, *shape] a picture, all of one shape but R."""

    encoded: Encoded
    arrays: tuple[np.ndarray, ...]
    uid: str
    key: str


def collate(
    documents: Sequence[Document],
    row_shape: tuple[int, ...],
    rule: ImageConfig,
    damage: tuple[Damage, ...] = (),
    *,
    is_raw: bool = True,
    together: Sequence[int] | None = None,
) -> Batch:
    """Lays at least one document end to end.

    row_shape: of one row of an image's array, as (3, H, W); a batch without images holds an empty [0, *row_shape].
    rule: what the pixels were made by. is_raw: they are uint8, still to be normalised by it; False: float32 as the
    model takes them. together: numbers of documents that attend to one another, as of whole packs; None: each to
    itself alone. Raises: SlotMismatchError where a document has another number of arrays than of image slots.
    """
    for document in documents:
        _check_slots(document)
    encoded = [document.encoded for document in documents]
    lengths = np.array([one.num_tokens for one in encoded], dtype=np.int64)
    starts = np.cumsum(lengths) - lengths
    bounds = np.append(starts, lengths.sum())
    if together is not None:
        bounds = bounds[np.cumsum([0, *together])]
    ids = np.concatenate([one.ids for one in encoded]).astype(np.int64)
    trainable = np.concatenate([one.trainable for one in encoded])
    slots, grids = _slots(encoded, starts), np.concatenate([one.grids for one in encoded])
    seconds = np.concatenate([one.seconds for one in encoded])
    positions = token_positions(bounds, slots[:, 0], slots[:, 1], grids, seconds, rule)
    return Batch(
        ids=torch.from_numpy(ids),
        labels=torch.from_numpy(_shifted_labels(ids, trainable, bounds)),
        positions=torch.from_numpy(positions),
        bounds=torch.from_numpy(bounds.astype(np.int32)),
        pixels=_stack([array for document in documents for array in document.arrays], row_shape, is_raw),
        slots=torch.from_numpy(slots),
        grids=torch.from_numpy(grids.astype(np.int64)),
        uids=tuple(document.uid for document in documents),
        keys=tuple(document.key for document in documents),
        damage=damage,
        image=rule if is_raw else None,
    )


def _shifted_labels(ids: np.ndarray, trainable: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """labels[t] is ids[t + 1] where that is a target between the same bounds, else IGNORE. int64 [T]."""
    targets = np.where(trainable, ids, IGNORE)
    labels = np.append(targets[1:], IGNORE)
    labels[bounds[1:] - 1] = IGNORE
    return labels


def _slots(encoded: Sequence[Encoded], starts: np.ndarray) -> np.ndarray:
    """Image slots in the batch's positions, int64 [N, 2]: start, length."""
    counts = [len(one.image_starts) for one in encoded]
    begin = np.concatenate([one.image_starts for one in encoded]).astype(np.int64) + np.repeat(starts, counts)
    return np.stack([begin, np.concatenate([one.image_lengths for one in encoded]).astype(np.int64)], axis=1)


def _stack(arrays: Sequence[np.ndarray], row_shape: tuple[int, ...], is_raw: bool) -> torch.Tensor:
    """[R, *row_shape], every array written once. Planes lie in memory as Pillow gives them, RGB by RGB: turning them
    here would cost a tenth of the decoding, and on the device next to nothing."""
    is_planes = is_raw and len(row_shape) == 3
    shape = (*row_shape[1:], row_shape[0]) if is_planes else row_shape
    stacked = np.empty((sum(map(len, arrays)), *shape), dtype=np.uint8 if is_raw else np.float32)
    start = 0
    for number, array in enumerate(arrays):
        if (array.shape[1:], array.dtype) != (row_shape, stacked.dtype):
            raise ValueError(
                f"image {number} has rows {array.dtype} {array.shape[1:]}, not {stacked.dtype} {row_shape}."
            )
        stacked[start : start + len(array)] = array.transpose(0, 2, 3, 1) if is_planes else array
        start += len(array)
    return torch.from_numpy(stacked.transpose(0, 3, 1, 2) if is_planes else stacked)


def _check_slots(document: Document) -> None:
    num_slots = len(document.encoded.image_starts)
    if num_slots != len(document.arrays):
        raise SlotMismatchError(
            f"sample {document.key} ({document.uid}) has {num_slots} image slots but {len(document.arrays)} images."
        )
