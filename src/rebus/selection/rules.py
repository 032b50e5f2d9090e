"""What a rule keeps, as arithmetic on arrays."""

import math

import numpy as np
from numpy.typing import NDArray

from rebus.selection.config import Rule

NO_SCORE = "no score"


def apply_rule(
    rule: Rule, values: NDArray[np.float64], uids: NDArray[np.void], sources: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Which of the N samples that are left a rule keeps.

    values: [N], none of them NaN. uids: [N] of dtype u8,u8. sources: [N], the number of each sample's shard.
    """
    if rule.min is not None:
        return values >= rule.min
    if rule.max is not None:
        return values <= rule.max
    keep = rule.keep_fraction if rule.keep_fraction is not None else 1 - (rule.drop_fraction or 0.0)
    if rule.within is None:
        return keep_highest(values, uids, keep)
    kept = np.zeros(len(values), dtype=bool)
    for source in np.unique(sources):
        rows = np.flatnonzero(sources == source)
        kept[rows] = keep_highest(values[rows], uids[rows], keep)
    return kept


def keep_highest(values: NDArray[np.float64], uids: NDArray[np.void], share: float) -> NDArray[np.bool_]:
    """The share with the highest values; of equal ones the lower uid first, then the earlier row."""
    num_kept = math.floor(share * len(values) + 0.5 + 1e-9)  # nearest count, halves up; 1e-9 mends 1 - 0.9 < 0.1
    order = np.lexsort((uids["f1"], uids["f0"], -values))
    kept = np.zeros(len(values), dtype=bool)
    kept[order[:num_kept]] = True
    return kept


def uids_as_numbers(uids: list[str]) -> NDArray[np.void]:
    """32 hex digits -> DataComp's form: structured little-endian u8,u8, the high 64 bits and the low 64 bits."""
    numbers = np.empty(len(uids), dtype=np.dtype("<u8,<u8"))
    raw = np.frombuffer(bytes.fromhex("".join(uids)), dtype=">u8").reshape(-1, 2)
    numbers["f0"], numbers["f1"] = raw[:, 0], raw[:, 1]
    return numbers
