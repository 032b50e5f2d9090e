"""Tensors as foreign folders store them, one at a time, by readers that cannot execute what they read."""

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from rebus.errors import DataError
from rebus.towers.hub import ANCHORS

Named = tuple[str, torch.Tensor]

WHOLE = ("model.safetensors", "pytorch_model.bin")
INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights of a hub-like folder, shards in order; empty where there are none.

    Raises: DataError where a shard that the index names is missing.
    """
    for name in INDICES:
        if (folder / name).is_file():
            shards = sorted(set(json.loads((folder / name).read_text())["weight_map"].values()))
            lost = [shard for shard in shards if not (folder / shard).is_file()]
            if lost:
                raise DataError(
                    f"{folder}: {name} names {len(shards)} files, {len(lost)} are missing, such as {lost[0]}."
                )
            return [folder / shard for shard in shards]
    return [folder / name for name in WHOLE if (folder / name).is_file()][:1]


def stored_names(folder: Path) -> set[str]:
    """The names of all tensors of a folder; no weight is read."""
    return {name for path in weight_files(folder) for name in names_of(path)}


def names_of(path: Path) -> list[str]:
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            return list(file.keys())
    return [name for name, _ in tensors_of(path)]


def stored_tensors(folder: Path) -> Iterator[Named]:
    """All tensors of a folder. Raises: DataError where it holds none."""
    files = weight_files(folder)
    if not files:
        raise DataError(f"{folder} holds no weights: neither {' nor '.join(WHOLE)}, whole or in shards.")
    for path in files:
        yield from tensors_of(path)


def tensors_of(path: Path) -> Iterator[Named]:
    """The tensors of one .safetensors or torch file, mapped into memory where the format allows."""
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                yield name, file.get_tensor(name)
        return
    loaded = load_tensors(path)
    if not isinstance(loaded, dict):
        raise DataError(f"{path} holds a {type(loaded).__name__}, not named tensors.")
    for name, tensor in loaded.items():
        if isinstance(tensor, torch.Tensor):
            yield str(name), tensor


def load_tensors(path: Path) -> Any:
    """What a torch file holds, tensors mapped from the file. Tensors, numbers, strings and containers alone are read.

    Raises: DataError where it holds anything else: its reader would have to run code that the file names.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (RuntimeError, EOFError, torch.serialization.pickle.UnpicklingError) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path} holds more than tensors, or is damaged, and is not read: {first}") from error


def tower_tensors(folder: Path) -> Iterator[Named]:
    """The tensors of a hub folder's vision tower by our names, whatever stands before them there."""
    stored = stored_names(folder)
    found = {name.removesuffix(anchor) for anchor in ANCHORS for name in stored if f".{name}".endswith(f".{anchor}")}
    if len(found) != 1:
        raise DataError(f"{folder} holds {len(found)} vision transformers; a tower is read from a folder with one.")
    prefix = found.pop()
    for name, tensor in stored_tensors(folder):
        if name.startswith(prefix):
            yield "tower.model." + name.removeprefix(prefix), tensor
