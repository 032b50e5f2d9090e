"""Reads a checkpoint folder back into a model."""

import json
from pathlib import Path
from typing import Any

import safetensors.torch
from pydantic import TypeAdapter

from rebus.checkpoints.save import ADAPTER_PREFIX, language_fingerprint
from rebus.errors import DataError, StrangerError
from rebus.fingerprint import read_manifest, refuse_stranger
from rebus.model.config import ModelConfig
from rebus.model.families import VisionLanguageModel, build
from rebus.pictures.config import ImageConfig
from rebus.towers.config import tower_fingerprint


def load_model(
    folder: Path,
    *,
    image: ImageConfig | None = None,
    device: str = "cpu",
    language: Path | None = None,
    tower_weights: Path | None = None,
) -> tuple[VisionLanguageModel, dict[str, Any]]:
    """Returns the model in eval mode and the TokensConfig it was trained with, as JSON values.

    image: another rule than the one it was trained with, such as more tokens a picture; None: that one.
    language, tower_weights: where the base weights lie now, if they have moved since; else where training had them.
    Raises: DataError where something is missing, StrangerError where base weights are not those of the training.
    """
    read_manifest(folder, "checkpoint")
    body = json.loads((folder / "model.json").read_text())
    config = _located(folder, ModelConfig.model_validate(body["model"]), language, tower_weights)
    found = {"language": language_fingerprint(config.language), "tower": tower_fingerprint(config.tower)}
    refuse_stranger(folder, body["base"], found, "The base weights changed. Import those of the training again.")
    rule = image or TypeAdapter(ImageConfig).validate_python(body["image"])
    model = build(config, rule, device=device)
    model.connector.load_state_dict(safetensors.torch.load_file(folder / "connector.safetensors", device=device))
    if config.lora is not None:
        _load_adapter(model, folder / "adapter" / "adapter_model.safetensors", device)
    return model.eval(), body["tokens"]


def _located(folder: Path, config: ModelConfig, language: Path | None, tower_weights: Path | None) -> ModelConfig:
    if (folder / "language").is_dir():
        language = folder / "language"
    language = language or config.language
    if not language.is_dir():
        raise DataError(f"{folder} stands on the language model {language}, which is not there. Import it again.")
    tower = config.tower.model_copy(update={"weights": tower_weights or config.tower.weights})
    return config.model_copy(update={"language": language, "tower": tower})


def _load_adapter(model: VisionLanguageModel, path: Path, device: str) -> None:
    import peft

    tensors = safetensors.torch.load_file(path, device=device)
    plain = {name.removeprefix(ADAPTER_PREFIX): tensor for name, tensor in tensors.items()}
    expected = set(peft.get_peft_model_state_dict(model.language))
    if expected != set(plain):
        raise StrangerError(
            f"{path} and the model disagree on adapter tensors: {len(plain)} in the file, {len(expected)} in the "
            f"model; for instance {sorted(expected ^ set(plain))[0]}."
        )
    peft.set_peft_model_state_dict(model.language, plain)
