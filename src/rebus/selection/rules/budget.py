"""Rule `budget`: so many tokens, shared out among groups; each group takes its best samples until its share is met."""

from fnmatch import fnmatchcase
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from rebus.config import Config
from rebus.errors import ConfigError, nearest
from rebus.log import say
from rebus.selection.groups import preferred
from rebus.selection.shares import take_within
from rebus.selection.view import Kept, View

Rows = NDArray[np.int64]
PLACES = ("shard", "folder")
NOWHERE = -1


class Rule(Config):
    """tokens: of all that is kept; the sum is no higher, and no further sample of any group would fit.

    by: what the names in `shares` mean: `shard`: patterns of shards' file names, such as cc3m-*, the first that fits
    counts; `folder`: names of the folders that shards lie in; else a column, of which they are values. shares: weights;
    samples of no group are dropped. Without shares, all are one group. A group that is too small gives the rest of its
    share to the others in proportion.
    prefer: the column of which the highest values are taken first; without it, and among equals, the lowest uids.
    text_tokens: a column with the number of each text's tokens; without it, text_chars / chars_per_token is the
    estimate. tokens_per_image: slots of one picture (Open-Qwen2VL: 144). A sample counts its fraction as a whole token.
    """

    tokens: float = Field(gt=0)
    tokens_per_image: float = Field(ge=0)
    by: str = "shard"
    shares: dict[str, float] = Field(default_factory=dict)
    prefer: str | None = None
    text_tokens: str | None = None
    chars_per_token: float = Field(4.0, gt=0)

    @model_validator(mode="after")
    def _check_options(self) -> "Rule":
        light = [name for name, weight in self.shares.items() if not weight > 0]
        if light:
            raise ValueError(f"the share of '{light[0]}' must be above 0; leave out what is not wanted")
        if "by" in self.model_fields_set and not self.shares:
            raise ValueError("`by` says what the names in `shares` mean; there are none")
        if self.text_tokens is not None and "chars_per_token" in self.model_fields_set:
            raise ValueError("`chars_per_token` is an estimate for lack of `text_tokens`; give one of the two")
        return self


def columns(rule: Rule) -> list[str]:
    own = None if rule.by in PLACES else rule.by
    return [name for name in ("num_images", rule.text_tokens or "text_chars", own, rule.prefer) if name is not None]


def vectors(rule: Rule) -> list[str]:
    return []


def inputs(rule: Rule) -> dict[str, str]:
    return {}


def apply(rule: Rule, view: View) -> Kept:
    """Raises: ConfigError for a share that no sample of the pool could have."""
    costs, scored = token_counts(rule, view)
    groups = _group_numbers(rule, view)
    if rule.by not in PLACES:
        scored &= view.scored(rule.by)
    order = preferred(view, rule.prefer)
    order = order[(scored & (groups != NOWHERE))[order]]
    order = order[np.argsort(groups[order], kind="stable")]
    names = list(rule.shares) or ["all"]
    bounds = np.searchsorted(groups[order], np.arange(len(names) + 1))
    members = [order[start:stop] for start, stop in pairwise(bounds)]
    weights = np.array(list(rule.shares.values()) or [1.0])
    counts = take_within([costs[rows] for rows in members], weights, int(rule.tokens))
    taken = [rows[:count] for rows, count in zip(members, counts, strict=True)]
    kept = np.zeros(len(view), dtype=bool)
    kept[np.concatenate(taken)] = True
    tokens = [int(costs[rows].sum()) for rows in taken]
    _tell(rule, names, tokens, [int(costs[rows].sum()) for rows in members])
    facts = {f"tokens of {name}": count for name, count in zip(names, tokens, strict=True)}
    return Kept(kept, ~scored, counts=facts | {"samples of no group": int((scored & (groups == NOWHERE)).sum())})


def token_counts(rule: Rule, view: View) -> tuple[Rows, NDArray[np.bool_]]:
    """(tokens of each sample [n], at least 1; which are known [n])."""
    name = rule.text_tokens or "text_chars"
    scored = view.scored(name)
    texts = np.where(scored, view.column(name), 0) / (1 if rule.text_tokens else rule.chars_per_token)
    whole = np.ceil(texts + rule.tokens_per_image * view.column("num_images"))
    return np.maximum(whole, 1).astype(np.int64), scored


def _group_numbers(rule: Rule, view: View) -> Rows:
    """[n] which of the shares a sample belongs to, NOWHERE for none."""
    names = list(rule.shares)
    if not names:
        return np.zeros(len(view), dtype=np.int64)
    if rule.by in PLACES:
        of_tar = [_first_fit(tar.name if rule.by == "shard" else tar.parent.name, rule) for tar in view.pool.tars]
        _refuse_idle(rule, set(of_tar), [tar.name if rule.by == "shard" else tar.parent.name for tar in view.pool.tars])
        return np.array(of_tar, dtype=np.int64)[view.sources]
    column = view.pool.columns[rule.by]
    values = column.values[view.rows]
    if column.words is not None:
        known = {word: number for number, word in enumerate(column.words[:-1])}
        _refuse_idle(rule, {number for number, name in enumerate(names) if name in known}, list(known))
        of_word = np.full(len(column.words), NOWHERE)
        of_word[[known[name] for name in names]] = np.arange(len(names))
        return of_word[values]
    groups = np.full(len(view), NOWHERE, dtype=np.int64)
    for number, name in enumerate(names):
        groups[values == _number(rule, name)] = number
    return groups


def _first_fit(place: str, rule: Rule) -> int:
    fits = (fnmatchcase(place, name) if rule.by == "shard" else place == name for name in rule.shares)
    return next((number for number, fit in enumerate(fits) if fit), NOWHERE)


def _refuse_idle(rule: Rule, used: set[int], known: list[str]) -> None:
    idle = [name for number, name in enumerate(rule.shares) if number not in used]
    if idle:
        some = ", ".join(sorted(set(known))[:8])
        raise ConfigError(
            f"no sample is of the share '{idle[0]}'{nearest(idle[0], known)}. By {rule.by} the pool has: {some}."
        )


def _number(rule: Rule, name: str) -> float:
    try:
        return float(name)
    except ValueError as error:
        raise ConfigError(f"column '{rule.by}' holds numbers; the share '{name}' is none.") from error


def _tell(rule: Rule, names: list[str], tokens: list[int], totals: list[int]) -> None:
    how = f"the column {rule.text_tokens}" if rule.text_tokens else f"an estimate of {rule.chars_per_token} chars each"
    say(f"{sum(tokens):,} of {int(rule.tokens):,} tokens; text by {how}, {rule.tokens_per_image:g} an image")
    for name, count, total in zip(names, tokens, totals, strict=True):
        say(f"  {name}: {count:,} of {total:,}{', all of it' if count == total else ''}")
    if sum(totals) < int(rule.tokens):
        say("  the pool is smaller than the budget; to see samples more than once, `repeat` them in the packs' mixture")
