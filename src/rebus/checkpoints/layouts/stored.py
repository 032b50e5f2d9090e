"""Tensors as foreign folders store them, one at a time, by readers that cannot execute what they read."""

import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from rebus.checkpoints.layouts.folder import read_json
from rebus.errors import DataError
from rebus.towers.hub import ANCHORS

Named = tuple[str, torch.Tensor]

WHOLE = ("model.safetensors", "pytorch_model.bin")
"""In this order, each with its index before it: a folder that holds both is read as transformers reads it."""


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights of a hub-like folder, shards in order; empty where there are none.

    Raises: DataError where an index is damaged, or a shard that it names is missing.
    """
    for name in WHOLE:
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _shards(index)
        if (folder / name).is_file():
            return [folder / name]
    return []


def _shards(index: Path) -> list[Path]:
    homes = read_json(index).get("weight_map")
    if not isinstance(homes, dict):
        raise DataError(f"{index} has no weight_map. Fetch it again.")
    shards = sorted(set(homes.values()))
    lost = [shard for shard in shards if not (index.parent / shard).is_file()]
    if lost:
        raise DataError(f"{index} names {len(shards)} files, {len(lost)} of them missing, such as {lost[0]}.")
    return [index.parent / shard for shard in shards]


def stored_names(folder: Path) -> set[str]:
    """The names of all tensors of a folder; no weight is read."""
    return {name for path in weight_files(folder) for name in names_of(path)}


def names_of(path: Path) -> list[str]:
    if path.suffix == ".safetensors":
        with _opened(path) as file:
            return list(file.keys())
    return [name for name, _ in tensors_of(path)]


def stored_tensors(folder: Path, prefix: str = "") -> Iterator[Named]:
    """The tensors of a folder whose names begin with `prefix`. Raises: DataError where it holds no weights."""
    files = weight_files(folder)
    if not files:
        raise DataError(f"{folder} holds no weights: neither {' nor '.join(WHOLE)}, whole or in shards.")
    for path in files:
        yield from tensors_of(path, prefix)


def tensors_of(path: Path, prefix: str = "") -> Iterator[Named]:
    """The tensors of one .safetensors or torch file whose names begin with `prefix`, mapped into memory where the
    format allows."""
    if path.suffix == ".safetensors":
        with _opened(path) as file:
            for name in file.keys():  # noqa: SIM118
                if name.startswith(prefix):
                    yield name, file.get_tensor(name)
        return
    loaded = load_tensors(path)
    if not isinstance(loaded, dict):
        raise DataError(f"{path} holds a {type(loaded).__name__}, not named tensors.")
    for name, tensor in loaded.items():
        if isinstance(tensor, torch.Tensor) and str(name).startswith(prefix):
            yield str(name), tensor


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        size = path.stat().st_size
        raise DataError(f"{path} ({size:,} bytes) is damaged or cut short: {error}. Fetch it again.") from error


def load_tensors(path: Path) -> Any:
    """What a torch file holds, tensors mapped from the file. Tensors, numbers, strings and containers alone are read.

    Raises: DataError where it holds anything else: its reader would have to run code that the file names.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (RuntimeError, EOFError, torch.serialization.pickle.UnpicklingError) as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        first = f"it names code, {code[1]}" if code else (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path} holds more than tensors, or is damaged, and is not read: {first}.") from error


def tower_tensors(folder: Path) -> Iterator[Named]:
    """The tensors of a hub folder's vision tower by our names, whatever stands before them there."""
    stored = stored_names(folder)
    found = {name.removesuffix(anchor) for anchor in ANCHORS for name in stored if f".{name}".endswith(f".{anchor}")}
    if len(found) != 1:
        raise DataError(f"{folder} holds {len(found)} vision transformers; a tower is read from a folder with one.")
    prefix = found.pop()
    for name, tensor in stored_tensors(folder, prefix):
        yield "tower.model." + name.removeprefix(prefix), tensor
