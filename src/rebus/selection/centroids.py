"""Nearest centroids, as DataComp's image-based baseline assigns them: the largest inner product."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rebus.errors import DataError
from rebus.selection.clusters import nearest_centroid

NUM_AT_ONCE = 1 << 24  # similarities held at once, 64 MB: 167 pictures against 100,000 centroids


def read_centroids(path: Path) -> NDArray[np.float32]:
    """float32 [K, D]. Raises: DataError."""
    array = _load(path)
    if array.ndim != 2 or array.dtype.kind != "f":
        raise DataError(f"{path} holds {array.dtype} of shape {array.shape}; vectors are floats [N, D].")
    return array.astype(np.float32)


def read_targets(path: Path, centroids: NDArray[np.float32]) -> NDArray[np.int64]:
    """Numbers of the clusters that are wanted, each once: as a file lists them (.txt, or integers [M] in .npy), or
    those nearest to embeddings of a target set (floats [M, D] in .npy). Raises: DataError."""
    if path.suffix == ".npy" and _load(path).ndim == 2:
        return np.unique(assign(read_centroids(path), centroids, str(path)))
    numbers = np.unique(_read_numbers(path))
    if len(numbers) and not 0 <= numbers[0] <= numbers[-1] < len(centroids):
        raise DataError(f"{path} names clusters {numbers[0]} to {numbers[-1]}; there are {len(centroids):,}, from 0.")
    return numbers


def assign(vectors: NDArray[np.float32], centroids: NDArray[np.float32], origin: str) -> NDArray[np.int64]:
    """int64 [N]. vectors: [N, D]; centroids: [K, D]; origin: names the vectors in an error. Raises: DataError."""
    if vectors.shape[1] != centroids.shape[1]:
        raise DataError(f"{origin} has vectors of {vectors.shape[1]} numbers, the centroids have {centroids.shape[1]}.")
    found = np.empty(len(vectors), dtype=np.int64)
    for part in _parts(len(vectors), len(centroids)):
        found[part], _ = nearest_centroid(vectors[part], centroids)
    return found


def _parts(num_vectors: int, num_centroids: int) -> Iterator[slice]:
    step = max(1, NUM_AT_ONCE // max(1, num_centroids))
    return (slice(start, start + step) for start in range(0, num_vectors, step))


def _read_numbers(path: Path) -> NDArray[np.int64]:
    if path.suffix == ".npy":
        array = _load(path)
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise DataError(f"{path} holds {array.dtype} of shape {array.shape}; clusters are integers [M].")
        return array.astype(np.int64)
    _demand(path)
    try:
        return np.array([int(word) for word in path.read_text(encoding="utf-8").split()], dtype=np.int64)
    except ValueError as error:
        raise DataError(f"{path} is no text of cluster numbers ({error}).") from error


def _load(path: Path) -> NDArray:
    _demand(path)
    try:
        return np.load(path, allow_pickle=False)
    except ValueError as error:
        raise DataError(f"{path} is no .npy ({error}).") from error


def _demand(path: Path) -> None:
    if not path.is_file():
        raise DataError(f"no file at {path}, which the baseline needs.")
