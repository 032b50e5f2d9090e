"""Rule `duplicates`: of samples that are the same, or nearly, one stays.

by:
- `exact`: the same bytes of the picture (column `image_stats.content`), or the same uid;
- `uid`: the same uid alone: no scores are needed;
- `text`: the same words in the same order, whatever the case and punctuation;
- `perceptual`: pictures whose hashes (column `image_stats.phash`) differ in at most `distance` bits; exact;
- `embedding`: vectors (`column`) whose cosine is at least `similarity`; exact up to `exact_up_to` samples, above within
  k-means clusters.
"""

import hashlib
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, model_validator

from rebus.config import Config
from rebus.log import say
from rebus.selection.clusters import known_rows, unit_rows
from rebus.selection.groups import first_of_equals, first_of_uids, keep_greedily, keep_linked, preferred
from rebus.selection.hamming import MAX_DISTANCE, bits_between, near_pairs
from rebus.selection.neighbours import Buckets, cosine_between, nearest_kept
from rebus.selection.texts import map_texts, plain_words
from rebus.selection.view import Kept, View

Rows = NDArray[np.int64]
DEFAULT_COLUMNS = {"exact": "image_stats.content", "perceptual": "image_stats.phash"}
OWN_OPTIONS = {
    "distance": ("perceptual",),
    "similarity": ("embedding",),
    "exact_up_to": ("embedding",),
    "num_clusters": ("embedding",),
    "seed": ("embedding",),
    "column": ("exact", "perceptual", "embedding"),
    "groups": ("perceptual", "embedding"),
}


class Rule(Config):
    """prefer: the column of which the highest value stays; without it, and among equals, the lowest uid.

    groups: `nearest` judges samples in that order and drops one only if it is near one that stays; `linked` keeps one
    of all that a chain of near pairs links, whose ends may be far apart. What is equal is so either way.
    num_clusters: of `embedding` above `exact_up_to`; by default one for 2,000 samples.
    """

    by: Literal["exact", "uid", "text", "perceptual", "embedding"]
    column: str | None = None
    distance: int = Field(4, ge=0, le=MAX_DISTANCE)
    similarity: float = Field(0.95, gt=0, le=1)
    prefer: str | None = None
    groups: Literal["nearest", "linked"] = "nearest"
    exact_up_to: int = Field(200_000, ge=0)
    num_clusters: int | None = Field(None, ge=2)
    seed: int = 0

    @model_validator(mode="after")
    def _check_options(self) -> "Rule":
        for option, kinds in OWN_OPTIONS.items():
            if option in self.model_fields_set and self.by not in kinds:
                raise ValueError(f"`{option}` goes with `by: {' or '.join(kinds)}`, not with `by: {self.by}`")
        if self.by == "embedding" and self.column is None:
            raise ValueError("`by: embedding` needs `column`, the vectors to compare, such as clip_b32.image")
        return self

    @property
    def compared(self) -> str | None:
        """The column that is looked at."""
        return self.column or DEFAULT_COLUMNS.get(self.by)


def columns(rule: Rule) -> list[str]:
    own = [rule.compared] if rule.by in DEFAULT_COLUMNS else []
    return [name for name in (*own, rule.prefer, "num_images") if name is not None]


def vectors(rule: Rule) -> list[str]:
    return [rule.column] if rule.by == "embedding" and rule.column else []


def inputs(rule: Rule) -> dict[str, str]:
    return {}


def apply(rule: Rule, view: View) -> Kept:
    """Samples without a picture or text are no duplicates; those with a picture and no value have no score."""
    order = preferred(view, rule.prefer)
    values, has = _values(rule, view)
    rows = order[has[order]]
    found = values[rows] if values is not None else view.uids[rows]
    unscored = ~has & (view.column("num_images") > 0) & (rule.by != "text")
    stays = _stays(rule, view, rows, found)
    dropped = np.flatnonzero(stays != np.arange(len(rows)))
    kept = ~unscored
    kept[rows[dropped]] = False
    num_groups = len(np.unique(stays[dropped]))
    return Kept(kept, unscored, _pairs(rule, view, rows, found, stays, dropped), counts={"groups": num_groups})


def _values(rule: Rule, view: View) -> tuple[NDArray | None, NDArray[np.bool_]]:
    """What is compared [n] or [n, D], None for uids; and which samples have it [n]."""
    if rule.by in DEFAULT_COLUMNS:
        assert rule.compared is not None
        has = view.scored(rule.compared)  # a sample without a picture still has its uid
        return view.column(rule.compared), has | (view.column("num_images") == 0) if rule.by == "exact" else has
    if rule.by == "embedding":
        assert rule.column is not None
        given = view.vectors(rule.column)
        return unit_rows(given), known_rows(given)
    if rule.by == "text":
        hashes = text_hashes(view)
        return hashes, hashes != 0
    return None, np.ones(len(view), dtype=bool)


def text_hashes(view: View) -> NDArray[np.uint64]:
    """[n] 64 bits of BLAKE2b of each caption's words; 0 where it has none."""
    hashes = np.zeros(len(view), dtype=np.uint64)
    for places, found in map_texts(view, _word_hashes):
        hashes[places] = found
    return hashes


def _word_hashes(texts: pa.Array) -> NDArray[np.uint64]:
    words = plain_words(texts).to_pylist()
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in words)
    return np.where([bool(text) for text in words], np.frombuffer(digests, "<u8"), 0).astype(np.uint64)


def _stays(rule: Rule, view: View, rows: Rows, found: NDArray) -> Rows:
    """For each of m samples, the best first, the one that stays in its stead: numbers into `rows`."""
    if rule.by == "embedding":
        if len(rows) > rule.exact_up_to:
            say(f"{len(rows):,} vectors, above exact_up_to = {rule.exact_up_to:,}: compared within k-means clusters")
        buckets = Buckets(rule.exact_up_to, rule.num_clusters, rule.seed)
        return nearest_kept(found, rule.similarity, buckets, linked=rule.groups == "linked")
    if rule.by == "perceptual":
        return near_hashes(found, rule.distance, linked=rule.groups == "linked")
    if rule.by == "exact":
        assert rule.compared is not None
        files = np.flatnonzero(view.scored(rule.compared)[rows])
        same_file, same_uid = files[first_of_equals(found[files])], first_of_uids(view.uids[rows])
        both = np.concatenate([files, np.arange(len(rows))])
        return keep_linked(len(rows), np.concatenate([same_file, same_uid]), both)
    return first_of_uids(found) if rule.by == "uid" else first_of_equals(found)


def near_hashes(hashes: NDArray[np.uint64], distance: int, *, linked: bool) -> Rows:
    """For each of m hashes, the best first, the number of the one that stays in its stead.

    Equal hashes share their neighbours, so the first of them stands for all.
    """
    first = first_of_equals(hashes)
    leaders = np.unique(first)
    near = near_pairs(hashes[leaders], distance)
    stays = np.arange(len(leaders))
    if linked:
        stays = keep_linked(len(leaders), near.left, near.right)
    else:
        kept = keep_greedily(len(leaders), near.left, near.right)
        told = kept[near.left] & ~kept[near.right]  # left < right
        left, right, bits = near.left[told], near.right[told], near.distance[told]
        order = np.lexsort((left, bits, right))
        names, at = np.unique(right[order], return_index=True)
        stays[names] = left[order][at]
    return leaders[stays][np.searchsorted(leaders, first)]


def _pairs(rule: Rule, view: View, rows: Rows, found: NDArray, stays: Rows, dropped: Rows) -> pa.Table:
    """distance: bits, 1 - cosine, or 0 for what is equal. Sorted by the dropped row."""
    left, right = dropped, stays[dropped]
    distance: Any = np.zeros(len(dropped))
    if rule.by == "perceptual":
        distance = bits_between(found[left], found[right])
    elif rule.by == "embedding":
        distance = 1 - cosine_between(found, left, right)
    order = np.argsort(rows[left])
    return pa.table(
        {
            "dropped": pa.array(view.rows[rows[left]][order], pa.int64()),
            "kept": pa.array(view.rows[rows[right]][order], pa.int64()),
            "distance": pa.array(distance[order].astype(np.float32)),
        }
    )
