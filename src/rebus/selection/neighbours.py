"""Near-duplicates among unit vectors, and which of them stay. Rows come in the order of preference, the best first.

Exact: every vector meets every one that it must. In buckets, as SemDeDup does (Abbas et al. 2023, SemDeDup,
section 3): vectors meet those of their own k-means cluster alone, so a pair that a border parts is missed.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rebus.log import track
from rebus.selection.clusters import find_centroids, nearest_centroid
from rebus.selection.groups import keep_greedily, keep_linked

BLOCK = 1024
"""Vectors judged at once; against as many times SPAN others their similarities are 64 MiB."""
SPAN = 16_384

Rows = NDArray[np.int64]
Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Buckets:
    """Above `exact_up_to` vectors: k-means clusters, of which each vector meets its own alone."""

    exact_up_to: int = 200_000
    num_clusters: int | None = None
    seed: int = 0

    def share_out(self, vectors: Vectors) -> list[Rows]:
        """Rows of each bucket, ascending; one bucket where all may meet. By default some 2,000 vectors a bucket."""
        if len(vectors) <= self.exact_up_to:
            return [np.arange(len(vectors))]
        num_clusters = self.num_clusters or max(2, len(vectors) // 2000)
        labels, _ = nearest_centroid(vectors, find_centroids(vectors, num_clusters, self.seed))
        order = np.argsort(labels, kind="stable")
        return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)


def nearest_kept(vectors: Vectors, threshold: float, buckets: Buckets, *, linked: bool) -> Rows:
    """For each of n unit vectors the row that stays in its stead; its own where it stays itself.

    linked: of all that a chain of cosines of at least `threshold` links, the first stays. Else each is judged in turn
    and stays unless one that stayed before is so similar: the most similar of those is named.
    """
    stays = np.arange(len(vectors))
    judge = _linked if linked else _greedy
    for rows in track(buckets.share_out(vectors), "near-duplicates"):
        stays[rows] = rows[judge(vectors[rows], threshold)]
    return stays


def _greedy(vectors: Vectors, threshold: float) -> Rows:
    """Blocks in turn: against what stayed before, then among themselves. No list of pairs, which may be n^2."""
    stays = np.arange(len(vectors))
    survivors = np.empty(0, dtype=np.int64)
    for start in range(0, len(vectors), BLOCK):
        block = np.arange(start, min(start + BLOCK, len(vectors)))
        names, cosines = _most_similar(vectors, block, survivors)
        fresh = np.flatnonzero(cosines < threshold)
        similarity = vectors[block] @ vectors[block].T
        low, high = np.nonzero(np.triu(similarity[np.ix_(fresh, fresh)] >= threshold, 1))
        kept = np.zeros(len(block), dtype=bool)
        kept[fresh] = keep_greedily(len(fresh), low, high)
        similarity[:, ~kept] = -np.inf
        similarity[np.triu_indices(len(block))] = -np.inf  # only one that was judged before counts
        within = similarity.argmax(axis=1)
        nearer = similarity[np.arange(len(block)), within] > cosines
        stays[block] = np.where(nearer, block[within], names)
        stays[block[kept]] = block[kept]
        survivors = np.concatenate([survivors, block[kept]])
    return stays


def _most_similar(vectors: Vectors, block: Rows, others: Rows) -> tuple[Rows, NDArray[np.float32]]:
    """The most similar of `others` for each of the block (the first of equal ones), and its cosine."""
    names, cosines = np.zeros(len(block), dtype=np.int64), np.full(len(block), -np.inf, dtype=np.float32)
    for start in range(0, len(others), SPAN):
        span = others[start : start + SPAN]
        similarity = vectors[block] @ vectors[span].T
        best = similarity.argmax(axis=1)
        found = similarity[np.arange(len(block)), best]
        better = found > cosines
        names[better], cosines[better] = span[best[better]], found[better]
    return names, cosines


def _linked(vectors: Vectors, threshold: float) -> Rows:
    roots = np.arange(len(vectors))
    for start in range(0, len(vectors), BLOCK):
        block = slice(start, start + BLOCK)
        for before in range(0, start + BLOCK, SPAN):
            span = slice(before, min(before + SPAN, start + BLOCK))
            left, right = np.nonzero(vectors[block] @ vectors[span].T >= threshold)
            roots = keep_linked(len(roots), roots[left + start], roots[right + before])[roots]
    return roots


def cosine_between(vectors: Vectors, left: Rows, right: Rows) -> NDArray[np.float32]:
    """Cosines of pairs of rows."""
    found = np.empty(len(left), dtype=np.float32)
    for start in range(0, len(left), SPAN):
        part = slice(start, start + SPAN)
        found[part] = np.einsum("nd,nd->n", vectors[left[part]], vectors[right[part]])
    return found


def nearest_across(vectors: Vectors, others: Vectors) -> tuple[Rows, NDArray[np.float32]]:
    """For each of n unit vectors the row of the most similar of `others`, and its cosine."""
    joined = np.arange(len(others))
    rows, cosines = np.zeros(len(vectors), dtype=np.int64), np.full(len(vectors), -np.inf, dtype=np.float32)
    for start in range(0, len(others), SPAN):
        span = joined[start : start + SPAN]
        names, found = nearest_centroid(vectors, others[span])
        better = found > cosines
        rows[better], cosines[better] = span[names[better]], found[better]
    return rows, cosines
