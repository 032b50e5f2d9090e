"""A few samples of each side of a rule, for a report that draws them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rebus.selection.view import Kept, View
from rebus.uids import uids_as_strings

NUM_EXAMPLES = 12
Example = dict[str, Any]


@dataclass(frozen=True)
class Examples:
    """rule: its name. dropped, kept: uid, shard (file name), row of its index, key, value (null: none) of each."""

    rule: str
    dropped: list[Example]
    kept: list[Example]


def near_the_boundary(name: str, view: View, answer: Kept, dropped: NDArray[np.bool_]) -> Examples:
    """The samples of each side whose value lies nearest to where the rule turns, by uid where they lie equally near or
    where it has no boundary: uids are hashes, so that is a draw, and the same one everywhere."""
    distance = np.zeros(len(view))
    if answer.values is not None and answer.boundary is not None:
        distance = np.nan_to_num(np.abs(answer.values.astype(np.float64) - answer.boundary), nan=np.inf)
    sides = [_describe(view, answer, _nearest(view, distance, side)) for side in (dropped, answer.kept)]
    return Examples(name, *sides)


def _nearest(view: View, distance: NDArray[np.float64], side: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Places of at most NUM_EXAMPLES samples: a partial sort first, since a view may hold ten millions."""
    places = np.flatnonzero(side)
    if len(places) > NUM_EXAMPLES:
        last = np.partition(distance[places], NUM_EXAMPLES - 1)[NUM_EXAMPLES - 1]
        places = places[distance[places] <= last]
    uids = view.pool.uids[view.rows[places]]
    return places[np.lexsort((uids["f1"], uids["f0"], distance[places]))[:NUM_EXAMPLES]]


def _describe(view: View, answer: Kept, places: NDArray[np.int64]) -> list[Example]:
    pool, rows = view.pool, view.rows[places]
    uids = uids_as_strings(pool.uids[rows]).to_pylist()
    return [
        {
            "uid": uid,
            "shard": pool.tars[pool.shard[row]].name,
            "row": int(pool.row[row]),
            "key": pool.keys[int(row)].as_py(),
            "value": _plain(None if answer.values is None else answer.values[place]),
        }
        for uid, row, place in zip(uids, rows, places, strict=True)
    ]


def _plain(value: Any) -> Any:
    """A number of JSON, which knows no NaN."""
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not np.isfinite(value) else value
