"""Membership in a set of uids: DataComp's published subsets, another selection, an expression over them."""

from typing import Literal

import numpy as np
from pydantic import Field, field_validator

from rebus.config import Config
from rebus.selection.uid_files import uids_fingerprint
from rebus.selection.uid_sets import evaluate, parse, paths_of
from rebus.selection.view import Kept, View
from rebus.uids import minus, places_of, unique


class Rule(Config):
    """uids: an expression of selection/uid_sets.py. keep: what is `inside` the set, or `outside`.

    Uids that the set names and the pool lacks are counted and no error: published subsets name what is long gone.
    """

    uids: str = Field(min_length=1)
    keep: Literal["inside", "outside"] = "inside"

    @field_validator("uids")
    @classmethod
    def _check_expression(cls, expression: str) -> str:
        parse(expression)
        return expression


def columns(rule: Rule) -> list[str]:
    return []


def vectors(rule: Rule) -> list[str]:
    return []


def inputs(rule: Rule) -> dict[str, str]:
    return {str(path): uids_fingerprint(path) for path in paths_of(parse(rule.uids))}


def apply(rule: Rule, view: View) -> Kept:
    wanted = evaluate(rule.uids)
    is_inside = places_of(view.uids, wanted) >= 0
    usable = view.pool.uids[np.flatnonzero(view.pool.row >= 0)]
    counts = {"uids in the set": len(wanted), "of them not in the pool": len(minus(wanted, unique(usable)))}
    return Kept(is_inside if rule.keep == "inside" else ~is_inside, counts=counts)
