"""Which encoder, where its weights are, and what its features depend on."""

from pathlib import Path
from typing import Literal

from rebus.config import Config
from rebus.errors import ConfigError, DataError
from rebus.fingerprint import file_fingerprint, fingerprint, folder_fingerprint


class TowerConfig(Config):
    """Which encoder, and where its weights are.

    kind: `efficientnet_lite0` (weights: a .safetensors file from `rebus import`), `transformers` (weights: the hub
    folder of a CLIP or SigLIP model), `tiny` (random weights, for tests). image_size: side of the square input in
    pixels. select_layer: index into the transformer's hidden states; -2 is LLaVA's choice.
    """

    kind: Literal["efficientnet_lite0", "transformers", "tiny"]
    weights: Path | None = None
    image_size: int = 224
    select_layer: int = -2


def tower_fingerprint(config: TowerConfig) -> str:
    """What the features depend on: the weights' bytes (not where they lie) and the settings."""
    settings = config.model_dump(mode="json", exclude={"weights"})
    return fingerprint({**settings, "weights": _weights_fingerprint(config)})


def _weights_fingerprint(config: TowerConfig) -> str | None:
    if config.weights is None:
        return None
    if config.weights.is_dir() and config.kind == "transformers":
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
