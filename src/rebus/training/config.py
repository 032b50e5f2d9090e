"""What a training recipe says. A stage is data: what trains, at which rate, on which plan; its name means nothing."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from rebus.config import Config
from rebus.model.config import LoraConfig, ModelConfig

Part = Literal["tower", "connector", "language", "lora"]


class TrainsConfig(Config):
    """One part of the model that trains: its peak learning rate and weight decay (none on norms and biases)."""

    lr: float = Field(gt=0)
    weight_decay: float = Field(default=0.0, ge=0)


class OptimizerConfig(Config):
    """AdamW (Loshchilov and Hutter 2019) in fp32, gradients clipped to a global norm."""

    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    max_grad_norm: float = Field(default=1.0, gt=0)


class ScheduleConfig(Config):
    """Learning rate over the run: linear warm-up, then this shape down to `final_share` of the peak."""

    kind: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: int = Field(default=10, ge=0)
    final_share: float = Field(default=0.0, ge=0, le=1)


class TrainRecipe(Config):
    """`rebus train`: a plan and a model (new, or from a checkpoint) -> a checkpoint.

    num_workers: threads that build batches; 0 builds them between steps. prefetch: steps built ahead. max_bad_share:
    of the documents met so far, before the run stops. shard_cache: a folder that keeps remote data, at most
    shard_cache_gb (10^9 bytes).
    """

    out: Path
    plan: Path
    model: ModelConfig | None = None
    init: Path | None = None
    lora: LoraConfig | None = None
    trains: dict[Part, TrainsConfig]
    epochs: float | None = Field(default=None, gt=0)
    steps: int | None = Field(default=None, gt=0)
    packs_per_step: int = Field(default=1, gt=0)
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    seed: int = 0
    standardise_features: bool = False
    feature_cache: Path | None = None
    save_every: int = Field(default=50, gt=0)
    keep_states: int = Field(default=2, gt=0)
    device: Literal["cpu", "cuda"] = "cpu"
    num_threads: int | None = Field(default=None, gt=0)
    num_workers: int = Field(default=2, ge=0)
    prefetch: int = Field(default=2, ge=0)
    max_bad_share: float = Field(default=0.05, ge=0, le=1)
    shard_cache: Path | None = None
    shard_cache_gb: float = Field(default=20, gt=0)

    @model_validator(mode="after")
    def _one_start_one_length(self) -> "TrainRecipe":
        if (self.model is None) == (self.init is None):
            raise ValueError("give exactly one of `model` (start anew) and `init` (a checkpoint to start from)")
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of `epochs` and `steps`")
        if "lora" in self.trains and self.lora is None and self.init is None:
            raise ValueError("`trains.lora` needs a `lora` section")
        if "tower" in self.trains and self.feature_cache is not None:
            raise ValueError("`feature_cache` keeps what a frozen tower makes; a tower that trains has none")
        if not self.trains:
            raise ValueError("`trains` is empty: name at least one part that learns")
        return self
