"""Applies rules in order: what dropped each sample, and the funnel that counts it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rebus.fingerprint import fingerprint
from rebus.selection.examples import Examples, near_the_boundary
from rebus.selection.pool import Pool
from rebus.selection.rules import OpenRule
from rebus.selection.view import Kept, View

ALL, DAMAGED, NO_SCORE = "all", "damaged", "no score"


@dataclass(frozen=True)
class Sifted:
    """reasons: row 0 is empty (kept), then what the funnel's rows are called. dropped_by: int16 [N], number in it.

    funnel: rows of rule, dropped, left. pairs: by rule, as its `Kept` had them. counts: by rule, where it counted.
    """

    reasons: list[str]
    dropped_by: NDArray[np.int16]
    funnel: list[dict[str, Any]]
    examples: list[Examples] = field(default_factory=list)
    pairs: dict[str, pa.Table] = field(default_factory=dict)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)


def inputs_of(opened: Sequence[OpenRule]) -> dict[str, str]:
    """One fingerprint for each rule that reads files."""
    found = {rule.name: rule.module.inputs(rule.options) for rule in opened}
    return {f"rules/{name}": fingerprint(inputs) for name, inputs in found.items() if inputs}


def sift(opened: Sequence[OpenRule], pool: Pool) -> Sifted:
    """Applies the rules to the pool, damaged samples first of all."""
    reasons = ["", DAMAGED, NO_SCORE, *(rule.name for rule in opened)]
    dropped_by = pool.damaged.astype(np.int16)
    left, dropped = len(pool), int(pool.damaged.sum())
    funnel = [{"rule": ALL, "dropped": 0, "left": left}, {"rule": DAMAGED, "dropped": dropped, "left": left - dropped}]
    sifted = Sifted(reasons, dropped_by, funnel)
    for number, rule in enumerate(opened, start=3):
        view = View(pool, np.flatnonzero(dropped_by == 0))
        _record(sifted, number, view, rule.module.apply(rule.options, view))
    return sifted


def _record(sifted: Sifted, number: int, view: View, answer: Kept) -> None:
    name, left = sifted.reasons[number], len(view)
    unscored = np.zeros(left, dtype=bool) if answer.unscored is None else answer.unscored & ~answer.kept
    if unscored.any():
        left -= int(unscored.sum())
        sifted.dropped_by[view.rows[unscored]] = sifted.reasons.index(NO_SCORE)
        sifted.funnel.append({"rule": NO_SCORE, "dropped": int(unscored.sum()), "left": left})
    dropped = ~answer.kept & ~unscored
    sifted.dropped_by[view.rows[dropped]] = number
    sifted.funnel.append({"rule": name, "dropped": int(dropped.sum()), "left": left - int(dropped.sum())})
    sifted.examples.append(near_the_boundary(name, view, answer, dropped))
    if answer.pairs is not None:
        sifted.pairs[name] = answer.pairs
    if answer.counts:
        sifted.counts[name] = answer.counts
