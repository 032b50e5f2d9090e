"""Rule `balance`: no concept more often than `at_most`.

by:
- `values`: at most so many of each value of a column (a language, a cluster that was computed elsewhere);
- `clusters`: at most so many of each k-means cluster of vectors;
- `entries`: MetaCLIP's balance (Xu et al. 2024, Demystifying CLIP Data, section 3 and algorithm 1): captions are
  matched with a list of entries. An entry found in c captions has a chance of at_most / c, at most 1, in each of
  them; a sample stays if one of its entries has luck. So the head is thinned, and the tail stays whole.
"""

from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from rebus.config import Config
from rebus.errors import DataError
from rebus.fingerprint import file_fingerprint
from rebus.log import say
from rebus.selection.clusters import find_centroids, known_rows, nearest_centroid, unit_rows
from rebus.selection.draws import draw, drawn_order
from rebus.selection.entries import find_entries, read_entries
from rebus.selection.groups import place_in_group, preferred, ranked
from rebus.selection.texts import map_texts
from rebus.selection.view import Kept, View

Rows = NDArray[np.int64]


class Rule(Config):
    """prefer: the column of which the highest values stay; without it, samples are drawn by their uids and `seed`.

    at_most: samples a value, a cluster or (expected) an entry; MetaCLIP took 20,000 for 400 million pairs.
    num_clusters: by default one for 1,000 samples. entries: a text file, one a line. unmatched: what becomes of samples
    whose caption holds no entry; MetaCLIP drops them.
    """

    by: Literal["values", "clusters", "entries"]
    at_most: int = Field(gt=0)
    column: str | None = None
    num_clusters: int | None = Field(None, ge=2)
    entries: Path | None = None
    unmatched: Literal["drop", "keep"] = "drop"
    prefer: str | None = None
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _check_options(self) -> "Rule":
        needed = {"values": "column", "clusters": "column", "entries": "entries"}[self.by]
        if getattr(self, needed) is None:
            raise ValueError(f"`by: {self.by}` needs `{needed}`")
        strange = {
            "values": ("num_clusters", "entries", "unmatched"),
            "clusters": ("entries", "unmatched"),
            "entries": ("column", "num_clusters", "prefer"),
        }[self.by]
        given = [name for name in strange if name in self.model_fields_set]
        if given:
            raise ValueError(f"`{given[0]}` does not go with `by: {self.by}`")
        return self


def columns(rule: Rule) -> list[str]:
    own = rule.column if rule.by == "values" else None
    return [name for name in (own, rule.prefer) if name is not None]


def vectors(rule: Rule) -> list[str]:
    return [rule.column] if rule.by == "clusters" and rule.column else []


def inputs(rule: Rule) -> dict[str, str]:
    """Raises: DataError where the list of entries is missing."""
    if rule.entries is None:
        return {}
    if not rule.entries.is_file():
        raise DataError(f"no list of entries at {rule.entries}. It is a text file, one entry a line.")
    return {"entries": file_fingerprint(rule.entries)}


def apply(rule: Rule, view: View) -> Kept:
    """The same samples stay whatever the order of the shards."""
    if rule.by == "entries":
        return _thin_entries(rule, view)
    groups, scored = value_numbers(view, rule.column or "") if rule.by == "values" else _cluster_numbers(rule, view)
    order = preferred(view, rule.prefer) if rule.prefer else drawn_order(view.uids, rule.seed)
    kept = scored.copy()
    scored_order = order[scored[order]]
    kept[scored_order] = place_in_group(groups, scored_order)[scored_order] < rule.at_most
    sizes = np.bincount(groups[scored])
    counts = {"groups": int((sizes > 0).sum()), "groups above at_most": int((sizes > rule.at_most).sum())}
    return Kept(kept, ~scored, counts=counts)


def value_numbers(view: View, name: str) -> tuple[Rows, NDArray[np.bool_]]:
    """(number of each sample's value [n], whether it has one [n])."""
    column = view.pool.columns[name]
    values = column.values[view.rows]
    if column.words is not None:
        return values.astype(np.int64), view.scored(name)
    return np.unique(values, return_inverse=True)[1].ravel().astype(np.int64), view.scored(name)


def _cluster_numbers(rule: Rule, view: View) -> tuple[Rows, NDArray[np.bool_]]:
    found = view.vectors(rule.column or "")
    scored = known_rows(found)
    order = ranked(None, view.uids)
    order = order[scored[order]]
    units = unit_rows(found[order])
    groups = np.zeros(len(view), dtype=np.int64)
    if len(order):
        num_clusters = rule.num_clusters or max(2, len(order) // 1000)
        groups[order] = nearest_centroid(units, find_centroids(units, num_clusters, rule.seed))[0]
    return groups, scored


def _thin_entries(rule: Rule, view: View) -> Kept:
    """The pairs of sample and entry are held at once: 16 bytes each."""
    assert rule.entries is not None
    entries = read_entries(rule.entries)
    found = map_texts(view, partial(find_entries, entries))
    samples = np.concatenate([np.empty(0, np.int64), *(places[texts] for places, (texts, _) in found)])
    names = np.concatenate([np.empty(0, np.int64), *(names for _, (_, names) in found)])
    counts = np.bincount(names, minlength=len(entries.names))
    chance = rule.at_most / np.maximum(counts, rule.at_most)
    seeds = entries.seeds[names] ^ np.uint64(rule.seed)
    lucky = samples[draw(view.uids[samples], seeds) < chance[names]]
    matched, kept = np.zeros(len(view), dtype=bool), np.zeros(len(view), dtype=bool)
    matched[samples], kept[lucky] = True, True
    kept |= ~matched & (rule.unmatched == "keep")
    head = int((counts > rule.at_most).sum())
    say(f"{int((counts > 0).sum()):,} of {len(entries.names):,} entries found, {head:,} above at_most")
    return Kept(
        kept,
        counts={"entries found": int((counts > 0).sum()), "entries above at_most": head}
        | {"samples without entry": int((~matched).sum())},
    )
