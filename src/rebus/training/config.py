"""What a training recipe says. A stage is data: what trains, at which rate, on which plan; its name means nothing."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from rebus.config import Config
from rebus.model.config import LoraConfig, ModelConfig

Part = Literal["tower", "connector", "newline", "language", "embeddings", "lora"]
Tracker = Literal["tensorboard", "wandb", "trackio"]


class TrainsConfig(Config):
    """One part of the model: its peak learning rate (0 freezes it) and weight decay (none on norms and biases).

    last_layers: of the tower or the language model only its last k blocks and the norm behind them; None: all of it.
    """

    lr: float = Field(ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    last_layers: int | None = Field(default=None, gt=0)


class OptimizerConfig(Config):
    """How gradients become steps; the global norm of all gradients is clipped first.

    kind: `adamw` (Loshchilov and Hutter 2019), `adamw_8bit` (states in 8 bit; Dettmers et al. 2022; extra `8bit`),
    `muon` (Jordan 2024; for the matrices inside blocks, AdamW for the rest). muon_momentum: of Muon alone.
    """

    kind: Literal["adamw", "adamw_8bit", "muon"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    max_grad_norm: float = Field(default=1.0, gt=0)
    muon_momentum: float = Field(default=0.95, ge=0, lt=1)


class ScheduleConfig(Config):
    """Learning rate over the run: linear warm-up, then this shape down to `final_share` of the peak.

    kind: `wsd` (warm-up, stable, decay; Hu et al. 2024) stays at the peak until the last `decay_share` of the run and
    falls linearly over that. warmup_share: of all steps, rounded up; in place of warmup_steps.
    """

    kind: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    warmup_steps: int = Field(default=10, ge=0)
    warmup_share: float | None = Field(default=None, ge=0, lt=1)
    decay_share: float = Field(default=0.2, gt=0, le=1)
    final_share: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _one_warmup(self) -> "ScheduleConfig":
        if self.warmup_share is not None and "warmup_steps" in self.model_fields_set:
            raise ValueError("give `warmup_steps` or `warmup_share`, not both")
        return self


class ParallelConfig(Config):
    """How the processes that torchrun starts share the model (FSDP2).

    kind: `shard` (each holds a share of weights, gradients and optimizer states), `hybrid` (shards among
    `shard_ranks` neighbours, such as the GPUs of a node, whole copies between such groups), `replicate` (all hold all).
    reshard_after_forward: gathers a block's weights again for its backward pass, in place of keeping them.
    cpu_offload: weights, gradients and optimizer states lie in the host's memory.
    reduce_every_batch: ranks exchange gradients after each micro-batch, and keep only their shares; else once a step,
    and each keeps them whole until then (4 bytes a weight that learns).
    """

    kind: Literal["shard", "hybrid", "replicate"] = "shard"
    shard_ranks: int | None = Field(default=None, gt=0)
    reshard_after_forward: bool = True
    cpu_offload: bool = False
    reduce_every_batch: bool = False


class GuardConfig(Config):
    """Which steps are not taken. A gradient that is not finite is never applied.

    spike: also none whose norm is above this many times the median of the last `window` taken steps; None: all
    finite ones. max_skipped: steps in a row before the run stops.
    """

    spike: float | None = Field(default=None, gt=1)
    window: int = Field(default=64, ge=8)
    max_skipped: int = Field(default=10, ge=1)


class EmaConfig(Config):
    """An exponential moving average of what trains; the final checkpoint then holds the average."""

    decay: float = Field(default=0.999, gt=0, lt=1)


class HeldoutConfig(Config):
    """Loss on packs that are not trained on: a plan of its own, every so many steps, its first `packs` of them."""

    plan: Path
    every: int = Field(default=100, gt=0)
    packs: int | None = Field(default=None, gt=0)


class EvalsConfig(Config):
    """`rebus eval` on a checkpoint saved every so many steps, as a process of its own beside the run.

    recipe: of `rebus eval`; its `model` and `out` are set for it. device: where it computes. keep: the checkpoints
    stay in <out>/at afterwards.
    """

    recipe: Path
    every: int = Field(gt=0)
    device: Literal["cpu", "cuda"] = "cpu"
    keep: bool = False


class ExpectedConfig(Config):
    """What the plan will hold where it does not lie here, for `rebus budget`; a plan that does is counted instead.

    packs: in one epoch. capacity: tokens of one. fill: share of it that holds tokens. visual, supervised: shares of
    those. document_tokens: mean length of a document, each with `pictures`. gpus: those that the recipe is meant for,
    such as `8xA100-40G`. source: where the figures are from.
    """

    packs: int = Field(gt=0)
    capacity: int = Field(gt=0)
    fill: float = Field(gt=0, le=1)
    visual: float = Field(ge=0, le=1)
    supervised: float = Field(gt=0, le=1)
    document_tokens: float = Field(gt=0)
    pictures: float = Field(default=1.0, ge=0)
    gpus: str = "8xA100-40G"
    source: str


class TrainRecipe(Config):
    """`rebus train`: a plan and a model (new, or from a checkpoint) -> a checkpoint.

    trains: the finest name that it holds is what a parameter goes by: `newline` is part of the connector and
    `embeddings` (with the output layer) of the language model where they are not named. packs_per_step: over all ranks
    and micro-batches of `packs_per_batch`. precision: of computing; weights and their updates are fp32 in each, fp16
    scales its loss. activations: `full` computes blocks again in the backward pass, `selective` keeps the results of
    their large products. compile: blocks by torch.compile. async_save: states are written beside the next steps.
    stall_seconds: without progress until the run stops and names the rank that is stuck.
    num_workers: threads that build batches; 0 builds them between steps. prefetch: steps built ahead. max_bad_share:
    of the documents met so far, before the run stops. shard_cache: a folder that keeps remote data, at most
    shard_cache_gb (10^9 bytes). hub_folder: also write <out>/hub in transformers' layout, for other servers.
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
    packs_per_batch: int = Field(default=1, gt=0)
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    guard: GuardConfig = GuardConfig()
    ema: EmaConfig | None = None
    seed: int = 0
    standardise_features: bool = False
    feature_cache: Path | None = None
    device: Literal["cpu", "cuda"] = "cpu"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    parallel: ParallelConfig = ParallelConfig()
    activations: Literal["off", "full", "selective"] = "off"
    compile: bool = False
    save_every: int = Field(default=50, gt=0)
    keep_states: int = Field(default=2, gt=0)
    async_save: bool = True
    hub_folder: bool = False
    stall_seconds: float = Field(default=1800.0, gt=0)
    heldout: HeldoutConfig | None = None
    evals: EvalsConfig | None = None
    trackers: tuple[Tracker, ...] = ("tensorboard",)
    project: str = "rebus"
    num_threads: int | None = Field(default=None, gt=0)
    num_workers: int = Field(default=2, ge=0)
    prefetch: int = Field(default=2, ge=0)
    max_bad_share: float = Field(default=0.05, ge=0, le=1)
    shard_cache: Path | None = None
    shard_cache_gb: float = Field(default=20, gt=0)
    expected: ExpectedConfig | None = None

    @field_validator("activations", mode="before")
    @classmethod
    def _off_is_a_word(cls, value: Any) -> Any:
        """YAML 1.1 reads an unquoted `off` as false."""
        return "off" if value is False else value

    @model_validator(mode="after")
    def _one_start_one_length(self) -> "TrainRecipe":
        if (self.model is None) == (self.init is None):
            raise ValueError("give exactly one of `model` (start anew) and `init` (a checkpoint to start from)")
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of `epochs` and `steps`")
        if self.packs_per_step % self.packs_per_batch:
            raise ValueError("`packs_per_step` is not a multiple of `packs_per_batch`")
        if self.model is not None and self.model.lora is not None:
            raise ValueError("`model.lora` is what checkpoints say; a recipe has its `lora` beside `model`")
        if self.standardise_features and (self.feature_cache is None or self.model is None):
            raise ValueError("`standardise_features` is for a new connector (`model`) over a `feature_cache`")
        return self

    @model_validator(mode="after")
    def _something_learns(self) -> "TrainRecipe":
        learning = {part for part, settings in self.trains.items() if settings.lr > 0}
        if not learning:
            raise ValueError("`trains` is empty: name at least one part that learns, with a rate above 0")
        if "lora" in learning and self.lora is None and self.init is None:
            raise ValueError("`trains.lora` needs a `lora` section")
        if "tower" in learning and self.feature_cache is not None:
            raise ValueError("`feature_cache` keeps what a frozen tower makes; a tower that trains has none")
        for part, settings in self.trains.items():
            if settings.last_layers is not None and part not in ("tower", "language"):
                raise ValueError(f"`trains.{part}` has no layers to count: last_layers is for tower and language")
        return self

    @model_validator(mode="after")
    def _parts_fit(self) -> "TrainRecipe":
        if self.precision == "fp16" and self.device == "cpu":
            raise ValueError("fp16 is for GPUs without bf16; on the CPU train in fp32 or bf16")
        if self.compile and self.activations == "selective":
            raise ValueError("`compile` goes with activations off or full: selective keeps what compiled blocks reuse")
        if self.parallel.cpu_offload and self.device == "cpu":
            raise ValueError("`parallel.cpu_offload` takes from a GPU what the CPU holds anyway; leave it out")
        if (self.parallel.kind == "hybrid") != (self.parallel.shard_ranks is not None):
            raise ValueError("`parallel.shard_ranks` belongs to kind 'hybrid', which needs it")
        return self
