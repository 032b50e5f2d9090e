"""Adapters in peft's layout: a folder that `PeftModel.from_pretrained(base, folder)` reads over a plain base of
transformers, which the folder names.

A part's base is the folder that its weights lie in: a language model or a vision tower alone, or a whole
vision-language model of the hub. Parts that lie in one folder share one of adapters.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rebus.checkpoints.hub import Named, layout_of
from rebus.checkpoints.layouts.settings import NATIVE
from rebus.checkpoints.layouts.stored import tensors_of
from rebus.errors import ConfigError, DataError, StrangerError
from rebus.model.adapters import linears_of, lora_layers, peft_settings
from rebus.model.config import ModelConfig

PREFIX = "base_model.model."
"""Stands before every name in peft's adapter files."""
WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"
FOLDERS = ("adapter", "tower_adapter")


@dataclass(frozen=True)
class Home:
    """One folder of adapters. name: beside model.json. base: of what they stand on. renamed: how names of ours begin,
    and how the base's do instead."""

    name: str
    base: Path
    renamed: tuple[tuple[str, str], ...]

    def theirs(self, ours: str) -> str | None:
        """The base's name for one of ours; None where it is not of this folder."""
        found = [(start, other) for start, other in self.renamed if ours.startswith(start)]
        return found[0][1] + ours.removeprefix(found[0][0]) if found else None

    def ours(self, theirs: str) -> str:
        for start, other in self.renamed:
            if theirs.startswith(other):
                return start + theirs.removeprefix(other)
        return theirs


def homes(config: ModelConfig) -> list[Home]:
    """Where a model's adapters lie in its checkpoint. Raises: ConfigError where they stand on no single base."""
    assert config.lora is not None
    language, tower = config.language, config.tower.weights
    found = []
    if config.lora.on != "tower":
        found.append(Home(FOLDERS[0], language, _language_names(language)))
    if config.lora.on == "language":
        return found
    if tower is None:
        raise ConfigError(
            f"adapters need a base to stand on, and a tower of kind '{config.tower.kind}' has no folder of its own. "
            "Put them on the language model (`lora.on: language`)."
        )
    if found and tower == language:
        return [Home(FOLDERS[0], language, found[0].renamed + _tower_names(config))]
    return [*found, Home(FOLDERS[1], tower, _tower_names(config))]


def _language_names(base: Path) -> tuple[tuple[str, str], ...]:
    return (("language.model.", "model.language_model." if layout_of(base) else "model."),)


def _tower_names(config: ModelConfig) -> tuple[tuple[str, str], ...]:
    is_native = config.tower.kind in NATIVE
    own, place = ("tower.", "model.visual.") if is_native else ("tower.model.", "model.vision_tower.")
    assert config.tower.weights is not None
    return ((own, place if layout_of(config.tower.weights) else ""),)


def tensors_at(model: Any, home: Home) -> dict[str, torch.Tensor]:
    """A folder's tensors by peft's names, as the model holds them (sharded, where it is)."""
    named = ((home.theirs(name), tensor) for name, tensor in model.named_parameters() if ".lora_" in name)
    return {PREFIX + name.replace(".default.", "."): tensor.detach() for name, tensor in named if name is not None}


def settings_at(model: Any, home: Home, base: str | None = None) -> dict[str, Any]:
    """adapter_config.json as JSON values. base: what it names as its base; None: the folder."""
    targets = _targets(model, home)
    speaks = any(ours.startswith("language.") for ours, _ in home.renamed)
    settings = peft_settings(model.config.lora, targets, task_type="CAUSAL_LM" if speaks else None).to_dict()
    listed = {name: sorted(value) if isinstance(value, set) else value for name, value in settings.items()}
    plain = {name: getattr(value, "value", value) for name, value in listed.items()}
    return plain | {"base_model_name_or_path": base or str(home.base)}


def _targets(model: Any, home: Home) -> list[str]:
    """Names that peft finds in the base: what layers are called where that tells them apart, else the whole names,
    because the base may have more blocks, or other parts with layers of such names."""
    names = [home.theirs(name) for name, _ in lora_layers(model)]
    whole = [name for name in names if name is not None]
    if home.renamed != (("language.model.", "model."),):
        return whole
    short = {name.rpartition(".")[2] for name in whole}
    meant = [name for name in linears_of(model.language) if name.rpartition(".")[2] in short]
    return sorted(short) if len(meant) == len(whole) else whole


def stored_adapters(model: Any, folder: Path) -> Iterator[Named]:
    """(our parameter's name, tensor) of all adapters in a checkpoint's folder.

    Raises: DataError where a file is missing, StrangerError where files and model hold other adapters.
    """
    for home in homes(model.config):
        path = folder / home.name / WEIGHTS
        if not path.is_file():
            raise DataError(f"{path} is missing: the model's adapters are in it. Save or copy the checkpoint again.")
        yield from stored_at(model, path, home)


def stored_at(model: Any, path: Path, home: Home) -> Iterator[Named]:
    """Those of one file. Raises: StrangerError."""
    wanted = {name for name, _ in model.named_parameters() if ".lora_" in name and home.theirs(name) is not None}
    held = {_parameter(home, name): tensor for name, tensor in tensors_of(path)}
    if set(held) != wanted:
        raise StrangerError(
            f"{path} and the model disagree on adapter tensors: {len(held)} in the file, {len(wanted)} in the "
            f"model; for instance {min(set(held) ^ wanted)}."
        )
    yield from held.items()


def _parameter(home: Home, stored: str) -> str:
    """...lora_A.weight in files is ...lora_A.default.weight in the model."""
    name = home.ours(stored.removeprefix(PREFIX))
    return name.replace(".lora_A.weight", ".lora_A.default.weight").replace(".lora_B.weight", ".lora_B.default.weight")
