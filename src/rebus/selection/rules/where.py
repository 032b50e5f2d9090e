"""Conditions joined by and, or, not.

A sample without a value neither meets a condition nor fails it: it is undecided, and so is its `not`. `all` fails
where one condition fails, `any` holds where one holds, whatever is undecided beside it (Kleene's three values). What
is undecided in the end is dropped, and the funnel counts it as `no score`. A fraction or quantile inside is taken of
all samples that the rules before left and that have a value.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from rebus.config import Config
from rebus.selection.rules import column
from rebus.selection.view import Kept, View

JOINTS = ("all", "any", "not")


class Condition(Config):
    """One of `all: [...]`, `any: [...]`, `not: {...}`, or what the rule `column` takes."""

    all: list["Condition"] | None = Field(None, min_length=1)
    any: list["Condition"] | None = Field(None, min_length=1)
    negated: "Condition | None" = Field(None, alias="not")
    test: column.Rule | None = None

    @model_validator(mode="before")
    @classmethod
    def _sort(cls, tree: Any) -> Any:
        """Options of a column stand beside the joints in a recipe; here they are one `test`."""
        if not isinstance(tree, dict) or "test" in tree:
            return tree
        joints = [name for name in JOINTS if name in tree]
        if not joints:
            return {"test": tree}
        if len(tree) > 1:
            raise ValueError(f"a condition has one of {', '.join(JOINTS)} or a column, not {', '.join(tree)} together")
        return tree

    def leaves(self) -> list[column.Rule]:
        if self.test is not None:
            return [self.test]
        inner = [self.negated] if self.negated is not None else self.all or self.any or []
        return [leaf for condition in inner for leaf in condition.leaves()]


class Rule(Config):
    """where: the condition that a sample must meet."""

    where: Condition


def columns(rule: Rule) -> list[str]:
    return [leaf.column for leaf in rule.where.leaves()]


def vectors(rule: Rule) -> list[str]:
    return []


def inputs(rule: Rule) -> dict[str, str]:
    return {}


def apply(rule: Rule, view: View) -> Kept:
    holds, fails = decide(rule.where, view)
    return Kept(holds, ~holds & ~fails)


def decide(condition: Condition, view: View) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """[n] whether it holds, [n] whether it fails; neither where it is undecided."""
    if condition.test is not None:
        answer = column.apply(condition.test, view)
        assert answer.unscored is not None
        return answer.kept, ~answer.kept & ~answer.unscored
    if condition.negated is not None:
        holds, fails = decide(condition.negated, view)
        return fails, holds
    parts = [decide(part, view) for part in condition.all or condition.any or []]
    all_hold, all_fail = [part[0] for part in parts], [part[1] for part in parts]
    if condition.all is not None:
        return np.logical_and.reduce(all_hold), np.logical_or.reduce(all_fail)
    return np.logical_or.reduce(all_hold), np.logical_and.reduce(all_fail)
