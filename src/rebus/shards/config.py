"""The recipe of `rebus shards`."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from rebus.config import Config
from rebus.engine import default_workers


class ShardsRecipe(Config):
    """Where raw data lies and where its shards go.

    source: `tars` are WebDataset shards that exist already (out equal to input indexes them where they lie; another
    out copies them), `pairs` a CSV, TSV or JSONL table of `file` and `caption`, `conversations` LLaVA or messages
    JSON, `pages` interleaved documents.
    input: the folder of tars, or the table. root: the folder that image paths in the table start from; by default
    the table's own. samples_per_shard: records a shard, bad ones included. max_bad_share: above it the stage stops.
    """

    source: Literal["tars", "pairs", "conversations", "pages"]
    input: Path
    out: Path
    root: Path | None = None
    samples_per_shard: int = Field(1000, ge=1, le=100_000)
    max_bad_share: float = Field(0.05, ge=0, le=1)
    num_workers: int = Field(default_factory=default_workers, ge=1)

    @model_validator(mode="after")
    def _check_root(self) -> "ShardsRecipe":
        if self.source == "tars" and self.root is not None:
            raise ValueError("`root` belongs to sources that name image files; source `tars` has none")
        return self

    @property
    def in_place(self) -> bool:
        """True where tars are indexed where they lie."""
        return self.source == "tars" and self.out.resolve() == self.input.resolve()

    @property
    def image_root(self) -> Path:
        return self.root if self.root is not None else self.input.parent
