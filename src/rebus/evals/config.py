"""What an evaluation recipe says. Light: no numpy, no torch."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from rebus.config import Config


class PromptConfig(Config):
    """The words around a picture. They must be those that the model was trained with.

    question: what the user asks; empty shows the picture alone, as for a model trained on captions only.
    answer: how a label stands in the answer. close: the token that ends an answer is scored too, so that `dog` does
    not beat `dog face` merely by being shorter.
    """

    question: str = "What is this?"
    answer: str = "{label}"
    close: bool = True

    @model_validator(mode="after")
    def _check_answer(self) -> "PromptConfig":
        if "{label}" not in self.answer:
            raise ValueError("`answer` has no place for the label; write {label} where it belongs")
        return self


class ChoiceConfig(Config):
    """Multiple choice by likelihood.

    num_draws: independent draws of the wrong candidates of each item. normalise: candidates are ranked by the sum or
    the mean of their tokens' log-likelihoods. num_references: pictures over which the marginal likelihood of a
    label is averaged, see choice.score; 0 ranks by the plain log-likelihood.
    """

    num_choices: int = Field(default=4, ge=2)
    num_draws: int = Field(default=1, ge=1)
    normalise: Literal["sum", "mean"] = "sum"
    num_references: int = Field(default=16, ge=0)


class NamingConfig(Config):
    """Free naming by greedy generation, for the first `num_items` items of the seeded order; 0 leaves it out."""

    num_items: int = Field(default=24, ge=0)
    max_new_tokens: int = Field(default=12, ge=1)


class EvalRecipe(Config):
    """`rebus eval`: a checkpoint and held-out caption shards, whose json says each picture's `label` -> results.

    limit: ask for so many pictures only; wrong candidates and wrong pictures still come from all of them.
    feature_cache: a folder of visual features, shared with other stages.
    """

    out: Path
    model: Path
    shards: Path
    prompt: PromptConfig = PromptConfig()
    choice: ChoiceConfig = ChoiceConfig()
    naming: NamingConfig = NamingConfig()
    limit: int | None = Field(default=None, ge=1)
    seed: int = 0
    feature_cache: Path | None = None
    device: Literal["cpu", "cuda"] = "cpu"
    num_threads: int | None = Field(default=None, ge=1)
