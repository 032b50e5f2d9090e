"""Documents -> Batch. Array operations over all documents at once; no Python loop over tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rebus.batches.batch import IGNORE, Batch
from rebus.errors import SlotMismatchError
from rebus.records import Damage
from rebus.tokens.encode import Encoded


@dataclass(frozen=True)
class Document:
    """An encoded sample with what fills its image slots: one array an image, all of one shape."""

    encoded: Encoded
    arrays: tuple[np.ndarray, ...]
    uid: str
    key: str


def collate(documents: Sequence[Document], image_shape: tuple[int, ...], damage: tuple[Damage, ...] = ()) -> Batch:
    """Lays at least one document end to end.

    image_shape: of one image's array, as of (3, H, W); a batch without images holds an empty [0, *image_shape].
    Raises: SlotMismatchError where a document has another number of arrays than of image slots.
    """
    for document in documents:
        _check_slots(document)
    encoded = [document.encoded for document in documents]
    lengths = np.array([one.num_tokens for one in encoded], dtype=np.int64)
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.concatenate([one.ids for one in encoded]).astype(np.int64)
    trainable = np.concatenate([one.trainable for one in encoded])
    starts = bounds[:-1]
    return Batch(
        ids=torch.from_numpy(ids),
        labels=torch.from_numpy(_shifted_labels(ids, trainable, bounds)),
        positions=torch.from_numpy(np.arange(len(ids)) - np.repeat(starts, lengths)),
        bounds=torch.from_numpy(bounds.astype(np.int32)),
        pixels=_stack([array for document in documents for array in document.arrays], image_shape),
        slots=torch.from_numpy(_slots(encoded, starts)),
        uids=tuple(document.uid for document in documents),
        keys=tuple(document.key for document in documents),
        damage=damage,
    )


def _shifted_labels(ids: np.ndarray, trainable: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """labels[t] is ids[t + 1] where that is a target of the same document, else IGNORE. int64 [T]."""
    targets = np.where(trainable, ids, IGNORE)
    labels = np.append(targets[1:], IGNORE)
    labels[bounds[1:] - 1] = IGNORE
    return labels


def _slots(encoded: Sequence[Encoded], starts: np.ndarray) -> np.ndarray:
    """Image slots in the batch's positions, int64 [N, 2]: start, length."""
    counts = [len(one.image_starts) for one in encoded]
    begin = np.concatenate([one.image_starts for one in encoded]).astype(np.int64) + np.repeat(starts, counts)
    return np.stack([begin, np.concatenate([one.image_lengths for one in encoded]).astype(np.int64)], axis=1)


def _stack(arrays: Sequence[np.ndarray], image_shape: tuple[int, ...]) -> torch.Tensor:
    if not arrays:
        return torch.empty((0, *image_shape), dtype=torch.float32)
    return torch.from_numpy(np.stack(arrays).astype(np.float32, copy=False))


def _check_slots(document: Document) -> None:
    num_slots = len(document.encoded.image_starts)
    if num_slots != len(document.arrays):
        raise SlotMismatchError(
            f"sample {document.key} ({document.uid}) has {num_slots} image slots but {len(document.arrays)} images."
        )
