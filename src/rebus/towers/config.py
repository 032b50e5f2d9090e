"""Which encoder, where its weights are, and what its features depend on."""

from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator

from rebus.config import Config
from rebus.errors import ConfigError, DataError
from rebus.fingerprint import file_fingerprint, fingerprint, folder_fingerprint
from rebus.pictures.config import Colour


class TowerConfig(Config):
    """Which encoder, and where its weights are.

    kind: `efficientnet_lite0` (weights: a .safetensors file from `rebus import`), `transformers` (weights: the hub
    folder of a CLIP, SigLIP, SigLIP2 or DINOv2 model, or of a vision-language model around one), `fused` (several,
    their features side by side on the channels), `qwen2_vl` and `qwen2_5_vl` (native resolution; they come with the
    weights of a whole checkpoint), `tiny` (random weights, for tests). image_size: side of the square input in pixels.
    select_layer: index into the transformer's hidden states; -2 is LLaVA's choice, -1 is behind the last block and
    before the final norm. features: `patch`, or `cls_patch` with the class token before the patches.
    parts: of a `fused` tower. mean, std: of RGB in 0..255, on a part: the normalisation that it was trained with; on
    the fused tower: that of the image rule. Where a part names none, the rule's is its own.
    """

    kind: Literal["efficientnet_lite0", "transformers", "fused", "qwen2_vl", "qwen2_5_vl", "tiny"]
    weights: Path | None = None
    image_size: int = 224
    select_layer: int = -2
    features: Literal["patch", "cls_patch"] = "patch"
    parts: tuple["TowerConfig", ...] = ()
    mean: Colour | None = None
    std: Colour | None = None

    @model_validator(mode="after")
    def _whole(self) -> "TowerConfig":
        if (self.kind == "fused") != bool(self.parts):
            raise ValueError("`parts` belong to a tower of kind 'fused', which needs them")
        if any(part.image_size != self.image_size for part in self.parts):
            sizes = ", ".join(str(part.image_size) for part in self.parts)
            raise ValueError(f"parts see the same pixels: image_size is {self.image_size}, theirs {sizes}")
        if (self.mean is None) != (self.std is None):
            raise ValueError("`mean` and `std` go together")
        if self.mean is None and any(part.mean is not None for part in self.parts):
            raise ValueError("a part names its mean and std: the fused tower must name those of the image rule")
        return self


ALWAYS = ("kind", "image_size", "select_layer")
"""Settings that stand in the fingerprint even at their defaults."""


def tower_fingerprint(config: TowerConfig) -> str:
    """What the features depend on: the weights' bytes (not where they lie) and the settings."""
    return fingerprint(_identity(config))


def _identity(config: TowerConfig) -> dict[str, Any]:
    settings = config.model_dump(mode="json", include=set(ALWAYS))
    if config.kind == "fused":
        return {
            **settings,
            "parts": [_identity(part) | {"mean": part.mean, "std": part.std} for part in config.parts],
            "mean": config.mean,
            "std": config.std,
        }
    if config.features != "patch":
        settings["features"] = config.features
    return {**settings, "weights": _weights_fingerprint(config)}


def _weights_fingerprint(config: TowerConfig) -> str | None:
    if config.weights is None:
        return None
    if config.weights.is_dir() and config.kind in ("transformers", "qwen2_vl", "qwen2_5_vl"):
        return folder_fingerprint(config.weights)
    if single_file(config.weights).is_file():
        return file_fingerprint(single_file(config.weights))
    raise DataError(f"no vision weights at {config.weights}. `rebus import --help` shows how to make them.")


def required_weights(config: TowerConfig) -> Path:
    if config.weights is None:
        raise ConfigError(f"tower '{config.kind}' needs `weights`. `rebus import --help` shows how to make them.")
    if not config.weights.exists():
        raise DataError(f"no vision weights at {config.weights}. `rebus import --help` shows how to make them.")
    return config.weights


def single_file(weights: Path) -> Path:
    """The .safetensors file itself, also where the folder around it is named."""
    return weights / "model.safetensors" if weights.is_dir() else weights
