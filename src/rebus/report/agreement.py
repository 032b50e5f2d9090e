"""How far scores and rules agree: rank correlations of columns, and the overlap of what rules keep."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rebus.engine import list_shards
from rebus.errors import RebusError
from rebus.log import say
from rebus.report.gather import Artifact
from rebus.report.rule_words import Rule, columns_of, options_of
from rebus.report.score_sample import Column
from rebus.selection.pool import load_pool
from rebus.selection.rules import OpenRule, open_rule
from rebus.selection.view import View
from rebus.uids import places_of

ALONE = ("column", "where", "baseline", "uids")
"""Rules whose answer about a pair can be had without the rules before them."""


@dataclass(frozen=True)
class Keeps:
    """What a rule or a whole selection keeps. kept: [pairs of the pool that are whole]."""

    name: str
    kept: NDArray[np.bool_]


def ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """[n] places from 0 in ascending order; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts + 1) / 2)[inverse.ravel()]


def spearman(columns: Sequence[Column], num_rows: int) -> NDArray[np.float64]:
    """[k, k] rank correlations (Spearman 1904), each over the pairs that have both values; NaN where fewer than 3 do,
    or where one column is constant among them."""
    size = len(columns)
    table = np.full((size, num_rows), np.nan)
    for place, column in enumerate(columns):
        table[place, column.rows] = column.values
    known = ~np.isnan(table)
    whole = [_standard(ranks(row)) if has.all() else None for row, has in zip(table, known, strict=True)]
    found = np.eye(size)
    for i in range(size):
        for j in range(i):
            a, b = whole[i], whole[j]
            if a is None or b is None:
                both = known[i] & known[j]
                a, b = (_standard(ranks(table[k, both])) for k in (i, j))
            found[i, j] = found[j, i] = float(a @ b) if len(a) > 2 else np.nan
    return found


def _standard(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean 0 and length 1, so that a product of two is their correlation; NaN where all are equal."""
    centred = values - values.mean() if len(values) else values
    length = float(np.sqrt(centred @ centred))
    return centred / length if length > 0 else np.full(len(values), np.nan)


def jaccard(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Of what one of two sets keeps, the share that both keep; NaN where neither keeps anything."""
    either = int((a | b).sum())
    return int((a & b).sum()) / either if either else float("nan")


def what_is_kept(shards: Artifact, scores: Artifact, selections: Sequence[Artifact]) -> list[Keeps]:
    """For each rule that stands by itself, what it would keep of the whole pool, and what each selection kept.

    Holds the pool as `rebus select` does: 42 bytes a pair and 9 for each column that a rule names. A rule that cannot
    be asked any more (its file is gone, its column renamed) is left out, and that is said.
    """
    rules = _opened(selections)
    try:
        tars = list_shards(shards.folder)
        names = [name for rule in rules for name in rule.module.columns(rule.options)]
        vectors = [name for rule in rules for name in rule.module.vectors(rule.options)]
        pool = load_pool(tars, scores.folder, names, vectors)
    except RebusError as error:
        say(f"rules are not compared: {error}")
        return []
    view = View(pool, np.flatnonzero(~pool.damaged))
    alone = [Keeps(rule.name, kept) for rule in rules if (kept := _asked(rule, view)) is not None]
    return alone + ([Keeps(f"all of {s.name}", _kept_by(s, view)) for s in selections] if len(selections) > 1 else [])


def _opened(selections: Sequence[Artifact]) -> list[OpenRule]:
    """Each rule of ALONE once, under its name; with the selection's name where two selections have that name."""
    found: dict[str, Rule] = {}
    for selection in selections:
        for rule in selection.manifest.made_by.get("rules", []):
            if rule.get("rule", "column") not in ALONE:
                continue
            name = rule["name"]
            if name in found and options_of(found[name]) != options_of(rule):
                name = f"{name} ({selection.name})"
            found.setdefault(name, rule)
    opened = []
    for name, rule in found.items():
        try:
            opened.append(open_rule(name, rule.get("rule", "column"), options_of(rule)))
        except RebusError as error:
            say(f"rule '{name}' is not compared: {error}")
    return opened


def _asked(rule: OpenRule, view: View) -> NDArray[np.bool_] | None:
    try:
        return rule.module.apply(rule.options, view).kept
    except (RebusError, OSError) as error:
        say(f"rule '{rule.name}' is not compared: {error}")
        return None


def _kept_by(selection: Artifact, view: View) -> NDArray[np.bool_]:
    return places_of(view.uids, np.load(selection.folder / "uids.npy")) >= 0


def used_columns(selections: Sequence[Artifact]) -> set[str]:
    """The columns that rules name, as they name them."""
    return {n for s in selections for rule in s.manifest.made_by.get("rules", []) for n in columns_of(rule)}
