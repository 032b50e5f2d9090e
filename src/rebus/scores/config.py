"""What a scoring recipe says."""

from pathlib import Path
from typing import Any

from pydantic import Field

from rebus.config import Config
from rebus.engine import default_workers


class ScoreRecipe(Config):
    """`rebus score`: shards -> one table per scorer and shard.

    scorers: name of the tables -> options; `scorer` among them says which scorer it is, by default the name itself.
    Tables of other scorers that lie in `out` stay. batch_size: samples measured together. num_threads: of torch.
    num_decoders: threads that decode pictures; by default one a core. num_workers: processes, each with its own
    models; one is enough where a model does the work.
    """

    shards: Path
    out: Path
    scorers: dict[str, dict[str, Any]] = Field(min_length=1)
    batch_size: int = Field(default=64, gt=0)
    max_bad_share: float = Field(default=0.05, ge=0, le=1)
    num_threads: int | None = Field(default=None, gt=0)
    num_decoders: int = Field(default_factory=default_workers, gt=0)
    num_workers: int = Field(default=1, gt=0)
