"""Documents -> Batch. Array operations over all documents at once; no Python loop over tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rebus.batches.batch import IGNORE, Batch
from rebus.errors import SlotMismatchError
from rebus.pictures import ImageConfig
from rebus.records import Damage
from rebus.tokens.encode import Encoded


@dataclass(frozen=True)
class Document:
    """An encoded sample with what fills its image slots: one array an image, all of one shape."""

    encoded: Encoded
    arrays: tuple[np.ndarray, ...]
    uid: str
    key: str


def collate(
    documents: Sequence[Document],
    image_shape: tuple[int, ...],
    damage: tuple[Damage, ...] = (),
    *,
    image: ImageConfig | None = None,
    together: Sequence[int] | None = None,
) -> Batch:
    """Lays at least one document end to end.

    image_shape: of one image's array, as of (3, H, W); a batch without images holds an empty [0, *image_shape].
    image: what the arrays are where they are uint8 pixels; None: float32 as the model takes them.
    together: numbers of documents that attend to one another, as of whole packs; None: each to itself alone.
    Raises: SlotMismatchError where a document has another number of arrays than of image slots.
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
    return Batch(
        ids=torch.from_numpy(ids),
        labels=torch.from_numpy(_shifted_labels(ids, trainable, bounds)),
        positions=torch.from_numpy(np.arange(len(ids)) - np.repeat(bounds[:-1], np.diff(bounds))),
        bounds=torch.from_numpy(bounds.astype(np.int32)),
        pixels=_stack([array for document in documents for array in document.arrays], image_shape, image),
        slots=torch.from_numpy(_slots(encoded, starts)),
        uids=tuple(document.uid for document in documents),
        keys=tuple(document.key for document in documents),
        damage=damage,
        image=image,
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


def _stack(arrays: Sequence[np.ndarray], image_shape: tuple[int, ...], image: ImageConfig | None) -> torch.Tensor:
    """[N, *image_shape], every array written once. Pixels lie in memory as Pillow gives them, RGB by RGB: turning
    them into planes here would cost a tenth of the decoding, and on the device next to nothing."""
    shape = image_shape if image is None else (*image_shape[1:], image_shape[0])
    stacked = np.empty((len(arrays), *shape), dtype=np.float32 if image is None else np.uint8)
    for number, array in enumerate(arrays):
        if (array.shape, array.dtype) != (image_shape, stacked.dtype):
            raise ValueError(f"image {number} is {array.dtype} {array.shape}, not {stacked.dtype} {image_shape}.")
        stacked[number] = array if image is None else array.transpose(1, 2, 0)
    return torch.from_numpy(stacked if image is None else stacked.transpose(0, 3, 1, 2))


def _check_slots(document: Document) -> None:
    num_slots = len(document.encoded.image_starts)
    if num_slots != len(document.arrays):
        raise SlotMismatchError(
            f"sample {document.key} ({document.uid}) has {num_slots} image slots but {len(document.arrays)} images."
        )
