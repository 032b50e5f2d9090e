"""What a recipe for a filter network says. Light: pydantic only."""

import string
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from rebus.config import Config
from rebus.pictures.config import FixedConfig

CAPTION = "caption"


def _is_text(text: str) -> str:
    if text != CAPTION and not any(field for _, field, _, _ in string.Formatter().parse(text)):
        raise ValueError(f"'{CAPTION}', or a text with fields of the sample's json, such as '{{label}}', is wanted")
    return text


TextForm = Annotated[str, AfterValidator(_is_text)]


class PairsConfig(Config):
    """shards: where the pairs are. selection: which of them; None takes all."""

    shards: Path
    selection: Path | None = None


class VisionConfig(Config):
    """kind: `transformers` (weights: a hub folder of any vision model with a pooled output, or of a model around one)
    or `efficientnet_lite0` (weights: the safetensors of `rebus import`, brought into transformers' EfficientNet).
    lr: of the tower's weights; None freezes it and looks at each picture once."""

    kind: Literal["transformers", "efficientnet_lite0"] = "transformers"
    weights: Path
    lr: float | None = Field(default=None, gt=0)


class TextConfig(Config):
    """kind: `transformers` (weights: a hub folder of a BERT-like encoder and its tokenizer) or `word_vectors`
    (weights: the hub folder of any language model, whose input embeddings become a BERT that averages them).
    width: principal axes of the word vectors that are kept; None keeps all. max_tokens: longer texts are cut off.
    lr: of the tower's weights; None freezes it and reads each text once."""

    kind: Literal["transformers", "word_vectors"] = "transformers"
    weights: Path
    width: int | None = Field(default=None, gt=0)
    max_tokens: int = Field(default=64, gt=1)
    lr: float | None = Field(default=None, gt=0)


class HeadsConfig(Config):
    """dim: of the common space. dropout: share of a frozen tower's features hidden at each step; what keeps a small
    trusted set, and the mismatches in it, from being learned by heart. dim is that of `start` where one is given."""

    dim: int = Field(default=256, gt=0)
    lr: float = Field(default=1e-3, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)


class TowersLr(Config):
    """Learning rates of the towers of `start`; None freezes one."""

    vision_lr: float | None = Field(default=None, gt=0)
    text_lr: float | None = Field(default=None, gt=0)


class FilterRecipe(Config):
    """`rebus train` with `kind: dual_encoder`: trusted pairs -> a dual encoder in transformers' own format.

    Either `vision`, `text` and `image` (two towers, fresh heads), or `start` (a whole dual encoder: CLIP, SigLIP or
    vision-text-dual-encoder) with `towers`. texts: what may stand for a picture: `caption`, or forms such as
    "{label}"; one is drawn for each picture in each epoch, the first is judged. heldout: pairs to measure on; else
    heldout_share of the trusted ones is never trained on. loss: softmax (CLIP) or sigmoid (SigLIP). logit_scale,
    logit_bias: where fresh ones begin (the bias is the sigmoid's). auc_seeds: of the planted mismatches.
    """

    kind: Literal["dual_encoder"]
    out: Path
    trusted: PairsConfig
    heldout: PairsConfig | None = None
    heldout_share: float = Field(default=0.1, gt=0, lt=1)
    texts: tuple[TextForm, ...] = Field(default=(CAPTION,), min_length=1)
    start: Path | None = None
    towers: TowersLr = TowersLr()
    vision: VisionConfig | None = None
    text: TextConfig | None = None
    image: FixedConfig | None = None
    heads: HeadsConfig = HeadsConfig()
    loss: Literal["softmax", "sigmoid"] = "softmax"
    logit_scale: float = Field(default=10.0, gt=0)
    logit_bias: float = -10.0
    epochs: int = Field(default=30, gt=0)
    batch_size: int = Field(default=256, gt=1)
    warmup_steps: int = Field(default=0, ge=0)
    weight_decay: float = Field(default=0.1, ge=0)
    seed: int = 0
    auc_seeds: tuple[int, ...] = Field(default=(0, 1, 2, 3, 4), min_length=1)
    save_every: int = Field(default=50, gt=0)
    feature_cache: Path | None = None
    max_bad_share: float = Field(default=0.05, ge=0, le=1)
    device: str = "auto"
    num_threads: int | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _whole(self) -> "FilterRecipe":
        parts = [self.vision, self.text, self.image]
        if (self.start is None) == (None in parts) or (self.start is not None and any(parts)):
            raise ValueError("needs `vision`, `text` and `image`, or `start` alone")
        if self.image is not None and self.image.resize not in ("squash", "crop"):
            raise ValueError("image.resize must be squash or crop: no image processor of the hub does another")
        return self

    def towers_and_image(self) -> tuple[VisionConfig, TextConfig, FixedConfig]:
        """What a recipe without `start` has."""
        if self.vision is None or self.text is None or self.image is None:
            raise ValueError("this recipe starts from a whole dual encoder")
        return self.vision, self.text, self.image

    @property
    def vision_lr(self) -> float | None:
        return self.vision.lr if self.vision else self.towers.vision_lr

    @property
    def text_lr(self) -> float | None:
        return self.text.lr if self.text else self.towers.text_lr


ELSEWHERE = ("out", "feature_cache", "save_every", "device", "num_threads")
"""Settings that do not shape the network."""
