"""Reads a checkpoint folder back into a model: Rebus' own, and the hub's as they are."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from rebus.checkpoints.hub import Named, cast, fitting, layout_of, open_hub, our_tensors
from rebus.checkpoints.layouts.folder import read_json
from rebus.checkpoints.layouts.settings import NATIVE, stored_vision
from rebus.checkpoints.layouts.stored import stored_tensors, tensors_of
from rebus.checkpoints.save import ADAPTER_PREFIX, base_fingerprints
from rebus.config import check_recipe
from rebus.errors import DataError, StrangerError
from rebus.fingerprint import MANIFEST, read_manifest, refuse_stranger
from rebus.model.assemble import assemble, fill
from rebus.model.config import ModelConfig
from rebus.model.families import VisionLanguageModel, add_lora, build
from rebus.pictures.config import ImageConfig
from rebus.towers.build import build_tower
from rebus.towers.config import TowerConfig


def load_model(
    folder: Path,
    *,
    image: ImageConfig | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    language: Path | None = None,
    tower_weights: Path | None = None,
    template: str | None = None,
) -> tuple[VisionLanguageModel, dict[str, Any]]:
    """Returns the model in eval mode and the TokensConfig it was trained with, as JSON values.

    folder: a checkpoint of Rebus, or a folder in one of the layouts that `checkpoints.hub` knows.
    image: another rule than the one it was trained with, such as more tokens a picture; None: that one.
    language, tower_weights: where the base weights lie now, if they have moved since; else where training had them.
    template: how turns are written, in place of what the folder says.
    Raises: DataError where something is missing, StrangerError where base weights are not those of the training.
    """
    folder = Path(folder)
    is_foreign = (folder / "config.json").is_file() and not (folder / MANIFEST).is_file()
    if is_foreign or layout_of(folder) is not None:
        return open_hub(folder, dtype=dtype, device=device, image=image, template=template)
    read_manifest(folder, "checkpoint")
    body = json.loads((folder / "model.json").read_text())
    config = check_recipe(ModelConfig, body["model"], str(folder / "model.json"))
    config = _located(folder, config, language, tower_weights)
    _refuse_changed(folder, config, body["base"])
    rule = image or TypeAdapter(ImageConfig).validate_python(body["image"])
    model = _base(folder, config, rule, device)
    if config.lora is not None:
        _load_adapter(model, folder / "adapter" / "adapter_model.safetensors", device)
    tokens = body["tokens"] if image is None else {**body["tokens"], "image": image.model_dump(mode="json")}
    if not Path(tokens.get("tokenizer", "")).exists() and (config.language / "tokenizer.json").is_file():
        tokens = {**tokens, "tokenizer": str(config.language)}  # it moved, and lies beside the language model
    return cast(model, dtype).eval(), tokens if template is None else {**tokens, "template": template}


def _located(folder: Path, config: ModelConfig, language: Path | None, tower_weights: Path | None) -> ModelConfig:
    if (folder / "language").is_dir():
        language = folder / "language"
    language = language or config.language
    if not language.is_dir():
        raise DataError(f"{folder} stands on the language model {language}, which is not there. Import it again.")
    tower_weights = tower_weights or config.tower.weights
    if config.tower.kind in NATIVE and (folder / "tower").is_dir():
        tower_weights = folder / "tower"
    tower = config.tower.model_copy(update={"weights": tower_weights})
    return config.model_copy(update={"language": language, "tower": _imported(folder, tower)})


def _imported(folder: Path, tower: TowerConfig) -> TowerConfig:
    """An imported checkpoint carries its towers, wherever it lies now."""
    homes = sorted((folder / "towers").glob("*"))
    if not homes:
        return tower
    pairs = zip(tower.parts or [tower], homes, strict=True)
    parts = [part.model_copy(update={"weights": home}) for part, home in pairs]
    return tower.model_copy(update={"parts": tuple(parts)}) if tower.parts else parts[0]


def _refuse_changed(folder: Path, config: ModelConfig, base: dict[str, str]) -> None:
    """A trained tower is in the checkpoint, and names no base."""
    found = base_fingerprints(config, config.language, with_tower="tower" in base)
    refuse_stranger(folder, base, found, "The base weights changed. Import those of the training again.")


def _base(folder: Path, config: ModelConfig, image: ImageConfig, device: str) -> VisionLanguageModel:
    """Tower, connector and language model as saved; adapters fresh."""
    connector = tensors_of(folder / "connector.safetensors")
    is_known = config.tower.kind in NATIVE or (folder / "tower" / "config.json").is_file()
    if is_known or layout_of(config.language) is not None:
        return _assembled(folder, config, image, connector, device)
    model = build(config, image, device=device)
    if (folder / "tower").is_dir():
        model.tower.load_state_dict(dict(tensors_of(folder / "tower" / "model.safetensors")))
    named = fitting(model, ((f"connector.{name}", tensor) for name, tensor in connector))
    model.connector.load_state_dict({name.removeprefix("connector."): tensor for name, tensor in named})
    return model


def _assembled(
    folder: Path, config: ModelConfig, image: ImageConfig, connector: Iterator[Named], device: str
) -> VisionLanguageModel:
    """From configs: what was trained comes from the checkpoint, the rest streams from where it lies."""
    home = folder / "tower" if (folder / "tower").is_dir() else config.tower.weights
    if home is None or not home.is_dir():
        raise DataError(f"{folder} stands on the vision tower {home}, which is not there. Fetch it again.")
    text = _text(config.language)
    model = assemble(config, image, vision=stored_vision(home), text=text)
    streams = [
        _tower_tensors(folder, config),
        _language_tensors(config.language, is_tied=text.get("tie_word_embeddings", False)),
        ((f"connector.{name}", tensor.clone()) for name, tensor in connector),
    ]
    fill(model, fitting(model, itertools.chain(*streams)), origin=str(folder), device=device)
    if config.lora is not None:
        add_lora(model.language, config)
    return model


def _text(language: Path) -> dict[str, Any]:
    layout = layout_of(language)
    return read_json(language / "config.json") if layout is None else layout.read(language, template="plain").text


def _tower_tensors(folder: Path, config: ModelConfig) -> Iterator[Named]:
    weights = config.tower.weights
    layout = layout_of(weights) if weights is not None else None
    if (folder / "tower").is_dir():
        stored = tensors_of(folder / "tower" / "model.safetensors")
        yield from ((f"tower.{name}", tensor.clone()) for name, tensor in stored)
    elif layout is not None and weights is not None:
        yield from our_tensors(layout, weights, part="tower.")
    else:
        yield from ((f"tower.{name}", tensor) for name, tensor in build_tower(config.tower).state_dict().items())


def _language_tensors(language: Path, *, is_tied: bool) -> Iterator[Named]:
    layout = layout_of(language)
    if layout is not None:
        yield from our_tensors(layout, language, is_tied=is_tied, part="language.")
    else:
        yield from ((f"language.{name}", tensor.clone()) for name, tensor in stored_tensors(language))


def _load_adapter(model: VisionLanguageModel, path: Path, device: str) -> None:
    import peft

    plain = {name.removeprefix(ADAPTER_PREFIX): tensor.to(device) for name, tensor in tensors_of(path)}
    expected = set(peft.get_peft_model_state_dict(model.language))
    if expected != set(plain):
        raise StrangerError(
            f"{path} and the model disagree on adapter tensors: {len(plain)} in the file, {len(expected)} in the "
            f"model; for instance {sorted(expected ^ set(plain))[0]}."
        )
    peft.set_peft_model_state_dict(model.language, plain)
