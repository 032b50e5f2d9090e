"""What a vision-language model is made of. Light: pydantic alone."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from rebus.config import Config
from rebus.towers.config import TowerConfig

IMAGE_ID = -1
"""Stands in `ids` where an image's tokens go; in no vocabulary, so a slot never merged is an error at once."""


class LoraConfig(Config):
    """Low-rank adapters on linear layers (LoRA, Hu et al. 2021), scaled by alpha / rank (rslora: alpha / sqrt(rank),
    Kalajdzievski 2023).

    targets: a kind, `attention`, `mlp` or `all_linear` (of each block; never the output head), or a list of kinds and
    names of modules. on: which part of the model has them.
    quantise: holds the frozen language model's linear layers in 4 or 8 bits (QLoRA, Dettmers et al. 2023; needs
    bitsandbytes, extra `qlora`). double_quantise: of 4 bits, the scales as well. compute: dtype of the products with
    4-bit weights; None: that of the activations.
    """

    rank: int = Field(default=16, ge=1)
    alpha: float = 32.0
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    rslora: bool = False
    targets: str | tuple[str, ...] = Field(default="all_linear", min_length=1)
    on: Literal["language", "tower", "both"] = "language"
    quantise: Literal["nf4", "fp4", "int8"] | None = None
    double_quantise: bool = True
    compute: Literal["fp32", "bf16", "fp16"] | None = None


class ModelConfig(Config):
    """A tower, a connector and a language model; what pictures become is the image rule's, which stands beside this.

    connector: `linear` or `mlpNx_gelu`, N linear layers with GELU between (LLaVA-1.5's is mlp2x_gelu); `fused_mlp`,
    Prismatic's for two towers; `identity`; `qwen2_merger` and `qwen2_5_merger`, which make one token of a square of
    patches. connector_norm: LayerNorm over the features before it. language: a hub folder (see `rebus import`).
    mrope_section: frequencies that turn with time, height and width (Qwen2-VL's M-RoPE); None: one position a token.
    """

    tower: TowerConfig
    connector: str = Field(
        default="mlp2x_gelu", pattern=r"^(identity|linear|mlp[1-9]x_gelu|fused_mlp|qwen2_merger|qwen2_5_merger)$"
    )
    connector_norm: bool = False
    language: Path
    mrope_section: tuple[int, int, int] | None = None
    lora: LoraConfig | None = None
