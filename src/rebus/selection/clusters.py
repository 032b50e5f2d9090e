"""k-means on unit vectors: similarity is the cosine, a centroid the direction of its members' sum."""

import numpy as np
from numpy.typing import NDArray

from rebus.log import track

CHUNK = 4096  # vectors judged at once: against 4,096 centroids their similarities are 64 MiB
TRAINED_ON = 256  # vectors per centroid: more move the centroids of a k-means by little and cost in proportion
NUM_ROUNDS = 10

Vectors = NDArray[np.float32]


def unit_rows(vectors: NDArray) -> Vectors:
    """Rows [n, D] at length 1; those of length 0 stay as they are, and are like nothing."""
    vectors = np.asarray(vectors, dtype=np.float32)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def known_rows(vectors: NDArray) -> NDArray[np.bool_]:
    """[n] which rows are vectors; a sample without one has NaN."""
    return np.asarray(np.isfinite(vectors).all(axis=1))


def nearest_centroid(vectors: Vectors, centroids: Vectors) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """For each of n unit vectors the number of the most similar centroid (the lower of equal ones), and the cosine."""
    labels = np.empty(len(vectors), dtype=np.int64)
    cosines = np.empty(len(vectors), dtype=np.float32)
    for start in range(0, len(vectors), CHUNK):
        similarity = vectors[start : start + CHUNK] @ centroids.T
        labels[start : start + CHUNK] = similarity.argmax(axis=1)
        cosines[start : start + CHUNK] = similarity.max(axis=1)
    return labels, cosines


def find_centroids(vectors: Vectors, num_clusters: int, seed: int) -> Vectors:
    """Lloyd's algorithm on n unit vectors, from as many of them drawn by `seed`; [k, D], k no more than n.

    Fitted on TRAINED_ON vectors a centroid where there are more. A cluster that loses all its members starts anew
    from the vector that its centroid fits worst. The result follows from the vectors' order, too: give them sorted.
    """
    draw = np.random.default_rng(seed)
    num_clusters = min(num_clusters, len(vectors))
    if len(vectors) > TRAINED_ON * num_clusters:
        vectors = vectors[np.sort(draw.choice(len(vectors), TRAINED_ON * num_clusters, replace=False))]
    centroids = vectors[np.sort(draw.choice(len(vectors), num_clusters, replace=False))]
    for _ in track(range(NUM_ROUNDS), "k-means"):
        labels, cosines = nearest_centroid(vectors, centroids)
        moved = _means(vectors, labels, cosines, num_clusters)
        if np.array_equal(moved, centroids):
            break
        centroids = moved
    return centroids


def _means(vectors: Vectors, labels: NDArray[np.int64], cosines: NDArray[np.float32], num_clusters: int) -> Vectors:
    order = np.argsort(labels, kind="stable")
    filled, starts = np.unique(labels[order], return_index=True)
    centroids = np.empty((num_clusters, vectors.shape[1]), dtype=np.float32)
    centroids[filled] = unit_rows(np.add.reduceat(vectors[order], starts, axis=0))
    empty = np.setdiff1d(np.arange(num_clusters), filled)
    centroids[empty] = vectors[np.argsort(cosines, kind="stable")[: len(empty)]]
    return centroids
