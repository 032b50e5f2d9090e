"""Writes checkpoints: the folder that evals and the server read, and the states that training resumes from.

A checkpoint names the tower and the language model that it stands on by fingerprint and carries what was trained:
the connector, adapters, or the whole language model or tower where that was trained.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from rebus.checkpoints.hub import layout_of
from rebus.checkpoints.layouts.settings import vision_of
from rebus.checkpoints.layouts.stored import weight_files
from rebus.errors import DataError
from rebus.fingerprint import (
    MANIFEST,
    Manifest,
    discard,
    file_fingerprint,
    fingerprint,
    read_manifest,
    write_atomically,
    write_manifest,
)
from rebus.model.config import ModelConfig
from rebus.model.families import VisionLanguageModel
from rebus.towers.config import tower_fingerprint

ADAPTER_PREFIX = "base_model.model."
"""Stands before every name in peft's adapter files."""


def save_model(
    model: VisionLanguageModel, tokens: dict[str, Any], folder: Path, inputs: dict[str, str] | None = None
) -> None:
    """Writes model.json, connector.safetensors, adapter/ or language/, tower/ if it was trained; the manifest last.

    tokens: the TokensConfig as JSON values. inputs: name -> fingerprint of what the training read. Other files in
    `folder` stay; while there is no manifest, no reader takes it for a checkpoint.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    adapter, language = folder / "adapter", folder / "language"
    is_adapted = model.config.lora is not None
    is_tuned = not is_adapted and any(parameter.requires_grad for parameter in model.language.parameters())
    write_tensors(folder / "connector.safetensors", model.connector.state_dict())
    _save_tower(model, folder / "tower")
    discard(adapter)
    if is_adapted:
        _save_adapter(model, adapter)
    if is_tuned or (language.is_dir() and language != model.config.language):
        discard(language)
    if is_tuned:
        _save_language(model, language)
    home = language if is_tuned else model.config.language
    base = base_fingerprints(model.config, home, with_tower=not model.trains_tower)
    parts = {"model": model.config.model_dump(mode="json"), "image": model.image.model_dump(mode="json")}
    body = {**parts, "tokens": tokens, "base": base}
    write_atomically(folder / "model.json", json.dumps(body, indent=2) + "\n")
    own = [*sorted((folder / "tower").glob("*")), *sorted(adapter.glob("*"))]
    written = [folder / "connector.safetensors", *own]
    weights = {str(path.relative_to(folder)): file_fingerprint(path) for path in written}
    write_manifest(folder, Manifest("checkpoint", {**body, "weights": weights}, inputs or {}))


def model_fingerprint(folder: Path) -> str:
    """Of what `load_model` opens: a checkpoint's manifest says it, a hub folder's config and weights are read."""
    is_hub = layout_of(folder) is not None
    return language_fingerprint(folder) if is_hub else read_manifest(folder, "checkpoint").fingerprint


def language_fingerprint(folder: Path) -> str:
    """Of a hub folder's config and weights; an imported folder's manifest saves hashing them."""
    if (folder / MANIFEST).is_file():
        return read_manifest(folder, "weights").fingerprint
    if not (folder / "config.json").is_file():
        raise DataError(f"no language model at {folder} (it holds no config.json). `rebus import --help` makes one.")
    return fingerprint({path.name: file_fingerprint(path) for path in [folder / "config.json", *weight_files(folder)]})


def base_fingerprints(config: ModelConfig, language: Path, *, with_tower: bool) -> dict[str, str]:
    """Of the folders that a checkpoint stands on; one that holds both language model and tower is read once."""
    base = {"language": language_fingerprint(language)}
    weights = config.tower.weights
    if with_tower and weights is not None and layout_of(weights) is not None:
        whole = base["language"] if weights == language else language_fingerprint(weights)
        settings = config.tower.model_dump(mode="json", exclude={"weights"})
        base["tower"] = fingerprint({**settings, "weights": whole})
    elif with_tower:
        base["tower"] = tower_fingerprint(config.tower)
    return base


def _save_tower(model: VisionLanguageModel, folder: Path) -> None:
    """A trained tower's tensors, and its config where the hub has one; what an earlier save left goes."""
    vision = vision_of(model) if model.trains_tower else None
    if model.trains_tower or folder != model.config.tower.weights:
        discard(folder)
    if model.trains_tower:
        folder.mkdir()
        write_tensors(folder / "model.safetensors", model.tower.state_dict())
    if vision is not None:
        write_atomically(folder / "config.json", json.dumps(vision, indent=2) + "\n")


def _save_adapter(model: VisionLanguageModel, folder: Path) -> None:
    """peft's layout: PeftModel.from_pretrained(base, folder) reads it without Rebus."""
    import peft

    folder.mkdir()
    tensors = peft.get_peft_model_state_dict(model.language)
    write_tensors(folder / "adapter_model.safetensors", {ADAPTER_PREFIX + name: t for name, t in tensors.items()})
    settings = model.language.peft_config["default"].to_dict()
    settings["base_model_name_or_path"] = str(model.config.language)
    text = json.dumps(settings, indent=2, default=lambda value: sorted(value) if isinstance(value, set) else str(value))
    write_atomically(folder / "adapter_config.json", text + "\n")


def _save_language(model: VisionLanguageModel, folder: Path) -> None:
    """A hub folder: what was trained, and the tokenizer beside it as it was."""
    model.language.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
        if (model.config.language / name).is_file():
            shutil.copy(model.config.language / name, folder / name)


def refuse_filled(folder: Path) -> None:
    """Raises: DataError where a folder to be made holds something already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} exists and is not empty. Name another folder, or remove it first.")


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Writes a .safetensors file whole or not at all; tensors that share memory are written each in full."""
    seen: set[int] = set()
    plain = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        plain[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        safetensors.torch.save_file(plain, temporary, metadata={"format": "pt"})
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # safetensors makes files that only their owner may read
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
