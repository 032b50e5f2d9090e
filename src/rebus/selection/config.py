"""The recipe of `rebus select`."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from rebus.config import Config


class Rule(Config):
    """Keeps a part of what the rules before it left; exactly one of the four measures is given.

    column: `scorer.column`, or the column alone where one scorer has it; the index's own width, height, num_images
    and text_chars too. min, max: bounds, themselves kept. keep_fraction: the share with the highest values;
    drop_fraction: the share with the lowest. Ties fall by uid, so that a share is exact and the same everywhere.
    within: `source` takes the share of each shard by itself.
    """

    name: str = Field(min_length=1)
    column: str = Field(min_length=1)
    min: float | None = None
    max: float | None = None
    keep_fraction: float | None = Field(None, ge=0, le=1)
    drop_fraction: float | None = Field(None, ge=0, le=1)
    within: Literal["source"] | None = None

    @model_validator(mode="after")
    def _check_measure(self) -> "Rule":
        measures = ("min", "max", "keep_fraction", "drop_fraction")
        given = [name for name in measures if name in self.model_fields_set]
        if len(given) != 1:
            raise ValueError(f"rule '{self.name}' needs exactly one of {', '.join(measures)}; it has {given or 'none'}")
        if self.within and given[0] in ("min", "max"):
            raise ValueError(f"rule '{self.name}': `within` goes with a fraction; a bound is the same for every shard")
        if self.name in RESERVED:
            raise ValueError(f"a rule cannot be called '{self.name}': the funnel has a row of that name")
        return self


RESERVED = ("all", "damaged", "no score")


class SelectionRecipe(Config):
    """shards, scores: folders that `rebus shards` and `rebus score` made of them. rules: applied in order."""

    shards: Path
    scores: Path | None = None
    rules: list[Rule] = Field(default_factory=list)
    out: Path

    @model_validator(mode="after")
    def _check_names(self) -> "SelectionRecipe":
        names = [rule.name for rule in self.rules]
        if len(set(names)) != len(names):
            raise ValueError("two rules have the same name; the funnel could not tell them apart")
        return self
