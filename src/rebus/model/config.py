"""What a vision-language model is made of. Light: pydantic alone."""

from pathlib import Path

from pydantic import Field

from rebus.config import Config
from rebus.towers.config import TowerConfig

IMAGE_ID = -1
"""Stands in `ids` where an image's tokens go; in no vocabulary, so a slot never merged is an error at once."""

LLAMA_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class LoraConfig(Config):
    """Low-rank adapters on the language model's linear layers (Hu et al., 2021). alpha / rank scales them."""

    rank: int = Field(default=16, ge=1)
    alpha: float = 32.0
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    targets: tuple[str, ...] = LLAMA_LINEARS


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
