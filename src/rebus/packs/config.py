"""Recipe of `rebus pack`."""

from pathlib import Path

from pydantic import Field

from rebus.config import Config
from rebus.engine import default_workers
from rebus.tokens.config import TokensConfig


class PackRecipe(Config):
    """shards: folders that `rebus shards` made. selection: what `rebus select` made of them; none keeps all samples.

    capacity: positions of a pack, image positions included. max_images_per_pack: bounds the tower's work on a pack.
    max_bad_share: share of the samples that may be unusable (too long, nothing to train on) before the stage stops.
    """

    shards: list[Path] = Field(min_length=1)
    selection: Path | None = None
    tokens: TokensConfig
    capacity: int = Field(default=1024, ge=2)
    max_images_per_pack: int | None = Field(default=None, ge=1)
    max_bad_share: float = Field(default=0.05, ge=0, le=1)
    seed: int = Field(default=0, ge=0)
    out: Path
    num_workers: int = Field(default_factory=default_workers, ge=1)
