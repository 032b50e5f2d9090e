"""Vision transformers of the hub: from their config alone, or with the weights of a folder that holds one."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rebus.errors import ConfigError, DataError
from rebus.towers.config import TowerConfig, required_weights

if TYPE_CHECKING:
    import torch

ANCHORS = ("embeddings.patch_embedding.weight", "embeddings.patch_embeddings.projection.weight")
"""Every vision transformer has one of these and no text model has: what stands before it is the tower's prefix."""


def empty_tower(config: TowerConfig, vision: dict[str, Any]) -> "torch.nn.Module":
    """The tower that `build_transformers` makes, from the hub's vision config, its weights not loaded.

    For kind `fused` vision is {"parts": [a config for each part]}. Raises: ConfigError where the two do not fit.
    """
    import transformers

    from rebus.towers.fused import FusedTower
    from rebus.towers.transformer import TransformerTower

    if config.kind == "fused":
        pairs = zip(config.parts, vision["parts"], strict=True)
        return FusedTower(config, [empty_tower(part, settings) for part, settings in pairs])
    return TransformerTower(config, transformers.AutoConfig.for_model(**vision))


def build_transformers(config: TowerConfig) -> "torch.nn.Module":
    """The tower with the weights of `config.weights`: the folder of a vision model, of a whole CLIP or SigLIP, or of a
    vision-language model around one. Only tensors of layers up to the chosen one are read, one at a time.

    Raises: ConfigError or DataError where the folder holds no such tower, or a tensor of it is missing.
    """
    from transformers.initialization import no_init_weights

    folder = required_weights(config)
    try:
        with no_init_weights():  # all of it is read
            tower: Any = empty_tower(config, vision_settings(folder))
    except ConfigError as error:
        raise ConfigError(f"{folder}: {error}") from error
    _load(tower.model, folder)
    return tower


def vision_settings(folder: Path) -> dict[str, Any]:
    """The vision config of a hub folder as JSON values, with its defaults. Raises: DataError without a config.json."""
    import transformers

    if not (folder / "config.json").is_file():
        raise DataError(f"no vision model at {folder}: it holds no config.json.")
    whole = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    return getattr(whole, "vision_config", whole).to_dict()


def _load(model: "torch.nn.Module", folder: Path) -> None:
    import torch

    files = _tensor_files(folder)
    prefix = _prefix(list(files), folder)
    places = {prefix + name: parameter for name, parameter in model.named_parameters()}
    missing = sorted(set(places) - set(files))
    if missing:
        raise DataError(f"{folder} lacks {len(missing)} tensors of its tower, such as '{missing[0]}'. Fetch it again.")
    for name, tensor in _read({name: files[name] for name in places}):
        if tensor.shape != places[name].shape:
            shapes = tuple(tensor.shape), tuple(places[name].shape)
            raise DataError(f"{folder}: '{name}' is {shapes[0]}, its config says {shapes[1]}.")
        with torch.no_grad():
            places[name].copy_(tensor)


def _tensor_files(folder: Path) -> dict[str, Path]:
    """Which safetensors file each tensor lies in."""
    from safetensors import safe_open

    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return {name: folder / file for name, file in json.loads(index.read_text())["weight_map"].items()}
    if not (folder / "model.safetensors").is_file():
        raise DataError(
            f"no weights at {folder}: it holds no model.safetensors. `rebus import --help` converts others."
        )
    with safe_open(folder / "model.safetensors", "pt") as tensors:
        return dict.fromkeys(tensors.keys(), folder / "model.safetensors")


def _prefix(names: list[str], folder: Path) -> str:
    """What stands before the tower's own names in this folder: nothing, `vision_model.`, `model.vision_tower.`, ..."""
    found = {
        name.removesuffix(anchor)
        for anchor in ANCHORS
        for name in names
        if name == anchor or name.endswith(f".{anchor}")
    }
    if len(found) != 1:
        raise DataError(f"{folder} holds {len(found)} vision transformers {sorted(found)}; a tower is read from one.")
    return found.pop()


def _read(files: dict[str, Path]) -> "Iterator[tuple[str, torch.Tensor]]":
    """Tensors one at a time, file by file."""
    from safetensors import safe_open

    for file in sorted(set(files.values())):
        if not file.is_file():
            raise DataError(f"{file} is missing, though the index beside it names it. Fetch the folder again.")
        with safe_open(file, "pt") as tensors:
            for name, home in files.items():
                if home == file:
                    yield name, tensors.get_tensor(name)
