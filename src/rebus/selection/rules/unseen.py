"""Rule `unseen`: removes samples whose picture is in an evaluation set, so that a benchmark stays one.

by:
- `perceptual`: hashes (column `image_stats.phash`) that differ in at most `distance` bits; exact;
- `exact`: the same bytes (column `image_stats.content`);
- `embedding`: vectors (`column`) whose cosine is at least `similarity`; `evals` are then scores folders, made by
  `rebus score` with the same scorer of the evaluation sets' shards.
"""

from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field, model_validator

from rebus.config import Config
from rebus.selection.clusters import known_rows, unit_rows
from rebus.selection.evals import eval_fingerprint, eval_vectors, hash_evals
from rebus.selection.hamming import MAX_DISTANCE, near_across
from rebus.selection.neighbours import nearest_across
from rebus.selection.view import Kept, View

Rows = NDArray[np.int64]
DEFAULT_COLUMNS = {"exact": "image_stats.content", "perceptual": "image_stats.phash"}
OWN_OPTIONS = {"distance": "perceptual", "flips": "perceptual", "similarity": "embedding"}


class Rule(Config):
    """evals: folders of shards or of pictures (their subfolders too). flips: mirrored pictures count as the same.

    cache: a folder where the hashes of the evaluation sets are kept; they are computed again where a set changed.
    """

    evals: list[Path] = Field(min_length=1)
    by: Literal["perceptual", "exact", "embedding"] = "perceptual"
    column: str | None = None
    distance: int = Field(4, ge=0, le=MAX_DISTANCE)
    similarity: float = Field(0.95, gt=0, le=1)
    flips: bool = True
    cache: Path | None = None

    @model_validator(mode="after")
    def _check_options(self) -> "Rule":
        for option, kind in OWN_OPTIONS.items():
            if option in self.model_fields_set and self.by != kind:
                raise ValueError(f"`{option}` goes with `by: {kind}`, not with `by: {self.by}`")
        if self.by == "embedding" and self.column is None:
            raise ValueError("`by: embedding` needs `column`, the vectors to compare, such as clip_b32.image")
        return self

    @property
    def compared(self) -> str:
        return self.column or DEFAULT_COLUMNS[self.by]


def columns(rule: Rule) -> list[str]:
    return ["num_images", *([] if rule.by == "embedding" else [rule.compared])]


def vectors(rule: Rule) -> list[str]:
    return [rule.compared] if rule.by == "embedding" else []


def inputs(rule: Rule) -> dict[str, str]:
    """Fingerprints of the evaluation sets. Raises: DataError where one is missing."""
    return {f"evals/{number}": eval_fingerprint(folder) for number, folder in enumerate(rule.evals)}


def apply(rule: Rule, view: View) -> Kept:
    """Samples without a picture stay; those with one and no value have no score."""
    places, names, distances, num_evals = _vectors_seen(rule, view) if rule.by == "embedding" else _seen(rule, view)
    kept = np.ones(len(view), dtype=bool)
    kept[places] = False
    unscored = _unscored(rule, view)
    kept[unscored] = False
    pairs = pa.table(
        {
            "dropped": pa.array(view.rows[places], pa.int64()),
            "kept": pa.array(np.full(len(places), -1), pa.int64()),
            "distance": pa.array(distances.astype(np.float32)),
            "place": names,
        }
    )
    return Kept(kept, unscored, pairs, counts={"pictures of evaluation sets": num_evals})


def _unscored(rule: Rule, view: View) -> NDArray[np.bool_]:
    """[n] samples with a picture that nothing is known of."""
    if rule.by != "embedding":
        return ~view.scored(rule.compared) & (view.column("num_images") > 0)
    has = np.zeros(len(view), dtype=bool)
    for places, block in view.iterate_vectors(rule.compared):
        has[places] = known_rows(block)
    return ~has & (view.column("num_images") > 0)


def _seen(rule: Rule, view: View) -> tuple[Rows, pa.Array, NDArray, int]:
    """(places in the view, the picture that each is like, their distance in bits; pictures that were looked at)."""
    evals = hash_evals(rule.evals, exact=rule.by == "exact", flips=rule.flips, cache=rule.cache)
    values = view.column(rule.compared)
    places = np.flatnonzero(view.scored(rule.compared))
    pool, of_place = np.unique(values[places], return_inverse=True)
    wanted, first = np.unique(evals.hashes, return_index=True)
    near = near_across(pool, wanted, rule.distance if rule.by == "perceptual" else 0)
    order = np.lexsort((first[near.right], near.distance, near.left))
    found, at = np.unique(near.left[order], return_index=True)
    nearest, bits = np.full(len(pool), -1), np.zeros(len(pool))
    nearest[found], bits[found] = first[near.right][order][at], near.distance[order][at]
    of_place = of_place.ravel()
    seen = nearest[of_place] >= 0
    names = evals.names.take(pa.array(nearest[of_place[seen]]))
    return places[seen], names, bits[of_place[seen]], len(pc.unique(evals.names))


def _vectors_seen(rule: Rule, view: View) -> tuple[Rows, pa.Array, NDArray, int]:
    """The same by cosines; a distance is 1 - cosine. Read shard by shard."""
    scorer, column = view.pool.vectors[rule.compared]
    assert view.pool.scores is not None  # the column was found there
    names, others = eval_vectors(rule.evals, view.pool.scores, scorer, column)
    places, nearest, cosines = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0, np.float32)]
    for block, found in view.iterate_vectors(rule.compared):
        rows, near = nearest_across(unit_rows(found), others)
        seen = near >= rule.similarity  # NaN is not
        places.append(block[seen])
        nearest.append(rows[seen])
        cosines.append(near[seen])
    return (
        np.concatenate(places),
        names.take(pa.array(np.concatenate(nearest))),
        1 - np.concatenate(cosines),
        len(names),
    )
