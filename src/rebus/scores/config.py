"""What a scoring recipe says."""

from pathlib import Path
from typing import Any

from pydantic import Field

from rebus.config import Config


class ScoreRecipe(Config):
    """`rebus score`: shards -> one table per scorer. `scorers` maps a scorer's name to its options."""

    shards: Path
    out: Path
    scorers: dict[str, dict[str, Any]] = Field(min_length=1)
    batch_size: int = Field(default=32, gt=0)
    max_bad_share: float = Field(default=0.05, ge=0, le=1)
    num_threads: int | None = Field(default=None, gt=0)
