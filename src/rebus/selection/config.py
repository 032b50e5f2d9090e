"""The recipe of `rebus select`."""

from pathlib import Path

from pydantic import ConfigDict, Field, field_validator, model_validator

from rebus.config import Config
from rebus.errors import ConfigError
from rebus.selection.rules import OpenRule, open_rule

RESERVED = ("all", "damaged", "no score")


class Entry(Config):
    """One rule: `name` for the funnel, `rule` for its module in selection/rules, and that module's own options."""

    model_config = ConfigDict(extra="allow")

    name: str = Field(min_length=1)
    rule: str = "column"

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if name in RESERVED:
            raise ValueError(f"a rule cannot be called '{name}': the funnel has a row of that name")
        return name

    @model_validator(mode="after")
    def _check_options(self) -> "Entry":
        try:
            self.open()
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return self

    def open(self) -> OpenRule:
        """Raises: ConfigError where there is no such rule, or it does not take these options."""
        return open_rule(self.name, self.rule, dict(self.model_extra or {}))


class SelectionRecipe(Config):
    """shards, scores: folders that `rebus shards` and `rebus score` made of them. rules: applied in order."""

    shards: Path
    scores: Path | None = None
    rules: list[Entry] = Field(default_factory=list)
    out: Path

    @model_validator(mode="after")
    def _check_names(self) -> "SelectionRecipe":
        names = [rule.name for rule in self.rules]
        if len(set(names)) != len(names):
            raise ValueError("two rules have the same name; the funnel could not tell them apart")
        return self
