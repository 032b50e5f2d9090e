"""The texts of the samples that a rule sees, shard by shard: a selection holds none."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rebus.engine import default_workers, map_shards
from rebus.records import Damage, Sample, Text
from rebus.selection.view import View
from rebus.shards.read import iterate_texts

MANY_SHARDS = 16  # from which on processes of their own pay for being started
BETWEEN_WORDS = r"[^\p{L}\p{M}\p{N}'-]+"


def map_texts(view: View, function: Callable[[pa.Array], Any]) -> list[tuple[NDArray[np.int64], Any]]:
    """[(places in the view [m], function(Arrow strings [m]))] for every shard; "" where a sample has no readable text.

    function: picklable, as other processes call it where there are many shards.
    """
    sources, rows = view.sources, view.pool.row[view.rows]
    order = np.argsort(sources, kind="stable")
    pieces = np.split(order, np.flatnonzero(np.diff(sources[order])) + 1) if len(order) else []
    items = [(view.pool.tars[sources[places[0]]], rows[places]) for places in pieces]
    num_workers = default_workers() if len(items) >= MANY_SHARDS else 1
    found = map_shards(_Read(function), items, description="reading texts", num_workers=num_workers)
    return list(zip(pieces, found, strict=True))


@dataclass(frozen=True)
class _Read:
    function: Callable[[pa.Array], Any]

    def __call__(self, item: tuple[Path, NDArray[np.int64]]) -> Any:
        shard, rows = item
        texts = [_text(found) for _, found in iterate_texts(shard, rows.tolist())]
        return self.function(pa.array(texts, pa.string()))


def _text(found: Sample | Damage) -> str:
    parts = () if isinstance(found, Damage) else found.parts
    return " ".join(part.text for part in parts if isinstance(part, Text))


def plain_words(texts: pa.Array) -> pa.Array:
    """Words alone, one space between them: compatibility forms (NFKC) in small letters; letters, marks, digits,
    apostrophes and hyphens make words."""
    small = pc.utf8_lower(pc.utf8_normalize(texts, "NFKC"))
    return pc.utf8_trim_whitespace(pc.replace_substring_regex(small, BETWEEN_WORDS, " "))
