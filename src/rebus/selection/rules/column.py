"""One column against a bound, a share, a quantile or a word."""

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from rebus.config import Config
from rebus.errors import ConfigError
from rebus.selection.view import Kept, View

SHARES = ("keep_fraction", "drop_fraction", "min_quantile", "max_quantile")
WORDS = ("equals", "not_equals", "one_of")
MEASURES = ("min", "max", *SHARES, *WORDS)

Value = bool | float | str


class Rule(Config):
    """Keeps what meets the one measure that is given.

    column: `scorer.column`, or the column alone where one scorer has it; the index's own width, height, num_images
    and text_chars too. min, max: bounds, themselves kept. keep_fraction: the share with the highest values;
    drop_fraction: the share with the lowest; ties fall by uid, so that a share is exact and the same everywhere.
    min_quantile, max_quantile: bounds at a quantile of the values (0..1, linear between two of them), themselves kept,
    so ties stay together. within: `source` takes a share or quantile of each shard by itself. equals, not_equals,
    one_of: a word or number.
    """

    column: str = Field(min_length=1)
    min: float | None = None
    max: float | None = None
    keep_fraction: float | None = Field(None, ge=0, le=1)
    drop_fraction: float | None = Field(None, ge=0, le=1)
    min_quantile: float | None = Field(None, ge=0, le=1)
    max_quantile: float | None = Field(None, ge=0, le=1)
    equals: Value | None = None
    not_equals: Value | None = None
    one_of: list[Value] | None = None
    within: Literal["source"] | None = None

    @property
    def measure(self) -> str:
        return next(name for name in MEASURES if getattr(self, name) is not None)

    @model_validator(mode="after")
    def _check_measure(self) -> "Rule":
        given = [name for name in MEASURES if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"needs exactly one of {', '.join(MEASURES)}; it has {', '.join(given) or 'none'}")
        if self.within and given[0] not in SHARES:
            raise ValueError("`within` goes with a fraction or quantile; a bound is the same for every shard")
        return self


def columns(rule: Rule) -> list[str]:
    return [rule.column]


def vectors(rule: Rule) -> list[str]:
    return []


def inputs(rule: Rule) -> dict[str, str]:
    return {}


def apply(rule: Rule, view: View) -> Kept:
    values, unscored = view.column(rule.column), ~view.scored(rule.column)
    rows = np.flatnonzero(~unscored)
    kept = np.zeros(len(view), dtype=bool)
    if rule.measure in WORDS:
        kept[rows] = match_words(rule, values[rows])
        return Kept(kept, unscored, values=values)
    if values.dtype == object:
        raise ConfigError(
            f"column '{rule.column}' holds words: `{rule.measure}` asks for numbers; use equals or one_of."
        )
    numbers, boundary = values.astype(np.float64), np.full(len(view), np.nan)
    amount = float(getattr(rule, rule.measure))
    amount = amount if rule.measure in SHARES else view.bound(rule.column, amount)
    for part in _parts(rule, view.sources[rows]):
        places = rows[part]
        kept[places], boundary[places] = cut(rule.measure, amount, numbers[places], view.uids[places])
    return Kept(kept, unscored, values=values, boundary=boundary)


def _parts(rule: Rule, sources: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Places that are judged together."""
    if rule.within is None or not len(sources):
        return [np.arange(len(sources))]
    order = np.argsort(sources, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(sources[order])) + 1)


def cut(
    measure: str, amount: float, values: NDArray[np.float64], uids: NDArray[np.void]
) -> tuple[NDArray[np.bool_], float]:
    """Which of [n] values, none of them NaN, a measure of numbers keeps, and the value at which it turns."""
    if not len(values):
        return np.zeros(0, dtype=bool), math.nan
    if measure.endswith("_fraction"):
        kept = keep_highest(values, uids, amount if measure == "keep_fraction" else 1 - amount)
        return kept, float(values[kept].min() if kept.any() else values.max())
    bound = float(np.quantile(values, amount)) if measure.endswith("_quantile") else amount
    return values >= bound if measure.startswith("min") else values <= bound, bound


def match_words(rule: Rule, values: NDArray) -> NDArray[np.bool_]:
    """Which of [n] values, words or numbers, are what the rule asks for. Raises: ConfigError for a word of numbers."""
    wanted = rule.one_of if rule.one_of is not None else [rule.equals if rule.not_equals is None else rule.not_equals]
    of_words = values.dtype == object
    if any(isinstance(one, str) != of_words for one in wanted):
        kind, other = ("words", "a number") if of_words else ("numbers", "a word")
        raise ConfigError(f"column '{rule.column}' holds {kind}, and `{rule.measure}` names {other}: {wanted}.")
    found = np.isin(values.astype(str) if of_words else values, np.array(wanted))
    return ~found if rule.measure == "not_equals" else found


def keep_highest(values: NDArray[np.float64], uids: NDArray[np.void], share: float) -> NDArray[np.bool_]:
    """The share with the highest values; of equal ones the lower uid first, then the earlier row."""
    num_kept = math.floor(share * len(values) + 0.5 + 1e-9)  # nearest count, halves up; 1e-9 mends 1 - 0.9 < 0.1
    kept = np.zeros(len(values), dtype=bool)
    if num_kept:
        last = np.partition(values, len(values) - num_kept)[len(values) - num_kept]
        kept[values > last] = True
        tied = np.flatnonzero(values == last)
        order = np.lexsort((uids["f1"][tied], uids["f0"][tied]))
        kept[tied[order[: num_kept - int(kept.sum())]]] = True
    return kept
