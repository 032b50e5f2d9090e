"""Writes checkpoints: the folder that evals and the server read, and the states that training resumes from.

A checkpoint names the tower and the language model that it stands on by fingerprint and carries what was trained:
the connector, adapters, or the whole language model or tower where that was trained. Of a model that is sharded over
ranks every tensor is gathered by itself, so rank 0 holds no more than one file.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch.distributed.tensor import DTensor

from rebus.checkpoints import adapter_files
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

FILE_BYTES = 5_000_000_000
"""Most that one file of weights holds, and so most that rank 0 gathers before it writes."""


def is_writer() -> bool:
    """Whether this process writes what all ranks save together: rank 0, or one alone."""
    return not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0


def save_model(
    model: VisionLanguageModel,
    tokens: dict[str, Any],
    folder: Path,
    inputs: dict[str, str] | None = None,
    *,
    dtype: torch.dtype | None = None,
    file_bytes: int = FILE_BYTES,
) -> None:
    """Writes model.json, connector.safetensors, adapter/ or language/, tower/ if ever it was trained; manifest last.

    tokens: the TokensConfig as JSON values. inputs: name -> fingerprint of what the training read. dtype: of all that
    is written; None: as the model holds it. Other files in `folder` stay; while there is no manifest, no reader takes
    it for a checkpoint. Of a sharded model all ranks must call this; rank 0 writes, and is the last to return.
    """
    if is_writer():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST).unlink(missing_ok=True)
    language, is_tuned = folder / "language", _is_tuned(model.language)
    gather_file(folder / "connector.safetensors", model.connector.state_dict(), dtype)
    _save_tower(model, folder / "tower", dtype, file_bytes)
    _save_adapters(model, folder, dtype)
    if is_writer() and (is_tuned or (language.is_dir() and language != model.config.language)):
        discard(language)
    if is_tuned:
        _save_language(model, language, dtype, file_bytes)
    if is_writer():
        _declare(model, tokens, folder, inputs or {}, language if is_tuned else model.config.language)


def _declare(
    model: VisionLanguageModel, tokens: dict[str, Any], folder: Path, inputs: dict[str, str], home: Path
) -> None:
    """model.json and the manifest. home: of the language model."""
    base = base_fingerprints(model.config, home, with_tower=not (model.trained_tower or _is_tuned(model.tower)))
    parts = {"model": model.config.model_dump(mode="json"), "image": model.image.model_dump(mode="json")}
    body = {**parts, "tokens": tokens, "base": base}
    write_atomically(folder / "model.json", json.dumps(body, indent=2) + "\n")
    own = [path for name in ("tower", *adapter_files.FOLDERS) for path in sorted((folder / name).glob("*"))]
    written = [folder / "connector.safetensors", *own]
    weights = {str(path.relative_to(folder)): file_fingerprint(path) for path in written}
    write_manifest(folder, Manifest("checkpoint", {**body, "weights": weights}, inputs))


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


def _save_tower(model: VisionLanguageModel, folder: Path, dtype: torch.dtype | None, file_bytes: int) -> None:
    """A trained tower's tensors, and its config where the hub has one; those of an earlier checkpoint are copied. What
    an earlier save left goes."""
    is_tuned, earlier = _is_tuned(model.tower), model.trained_tower
    if is_writer() and (is_tuned or folder != (earlier or model.config.tower.weights)):
        vision = vision_of(model) if is_tuned else None  # read first: it may lie in this very folder
        discard(folder)
        if vision is not None:
            write_atomically(folder / "config.json", json.dumps(vision, indent=2) + "\n")
        if earlier is not None and not is_tuned:
            shutil.copytree(earlier, folder)
    if is_tuned:
        gather_folder(folder, model.tower.state_dict(), dtype, file_bytes)


def _is_tuned(part: torch.nn.Module) -> bool:
    """Whether a part's own weights were trained, so that it is saved whole; adapters on it are not its own."""
    return any(parameter.requires_grad for name, parameter in part.named_parameters() if ".lora_" not in name)


def _save_adapters(model: VisionLanguageModel, folder: Path, dtype: torch.dtype | None) -> None:
    """peft's layout: PeftModel.from_pretrained(base, folder) reads it without Rebus. What an earlier save left goes."""
    if is_writer():
        for name in adapter_files.FOLDERS:
            discard(folder / name)
    for home in adapter_files.homes(model.config) if model.config.lora is not None else ():
        gather_file(folder / home.name / adapter_files.WEIGHTS, adapter_files.tensors_at(model, home), dtype)
        if is_writer():
            text = json.dumps(adapter_files.settings_at(model, home), indent=2)
            write_atomically(folder / home.name / adapter_files.SETTINGS, text + "\n")


def _save_language(model: VisionLanguageModel, folder: Path, dtype: torch.dtype | None, file_bytes: int) -> None:
    """A hub folder: what was trained, and the tokenizer beside it as it was."""
    language = model.language
    tensors = _as_stored(language)
    dtype = dtype or _widest(tensors)
    gather_folder(folder, tensors, dtype, file_bytes)
    if not is_writer():
        return
    language.config.dtype = str(dtype).removeprefix("torch.")
    language.config.architectures = [type(language).__name__.removeprefix("FSDP")]  # FSDP2 renames classes
    language.config.save_pretrained(folder)
    language.generation_config.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
        if (model.config.language / name).is_file():
            shutil.copy(model.config.language / name, folder / name)


def _as_stored(language: Any) -> dict[str, torch.Tensor]:
    """Its tensors as transformers stores them: tied ones once; where it holds them in another form than it stores
    (experts in one tensor), the whole model has to be gathered for that."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import revert_weight_conversion

    first = {name for name, _ in language.named_parameters()}
    again = {name for name, _ in language.named_parameters(remove_duplicate=False)} - first
    tensors = {name: tensor for name, tensor in language.state_dict().items() if name not in again}
    if not get_model_conversion_mapping(language, add_legacy=False):
        return tensors
    found: dict[str, torch.Tensor] = revert_weight_conversion(
        language, {name: _whole(tensor) for name, tensor in tensors.items()}
    )
    return found


def _widest(tensors: Mapping[str, torch.Tensor]) -> torch.dtype:
    """One dtype that holds them all: beside weights that train in fp32, frozen ones may lie in bf16."""
    dtypes = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    return max(dtypes, key=lambda dtype: dtype.itemsize, default=torch.float32)


def gather_folder(
    folder: Path, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype | None = None, file_bytes: int = FILE_BYTES
) -> None:
    """model.safetensors in a folder, or several files and their index, as transformers reads them. A collective where
    tensors are sharded."""
    dtype = dtype or _widest(tensors)
    shapes = {name: _shape(tensor, dtype) for name, tensor in tensors.items()}
    split = split_torch_state_dict_into_shards(shapes, max_shard_size=file_bytes)
    for file, names in split.filename_to_tensors.items():
        gather_file(folder / file, {name: tensors[name] for name in names}, dtype)
    if split.is_sharded and is_writer():
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_atomically(folder / "model.safetensors.index.json", json.dumps(index, indent=2) + "\n")


def _shape(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    kind = dtype if tensor.is_floating_point() else tensor.dtype
    return torch.empty(tensor.shape, dtype=kind, device="meta")


def gather_file(path: Path, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype | None = None) -> None:
    """One .safetensors file. A collective where tensors are sharded: each is whole on all ranks for a moment, and stays
    so on rank 0, in the host's memory, until it is written. dtype: of what is no integer; None: its own."""
    held = {}
    for name, tensor in tensors.items():
        whole = _whole(tensor)
        if is_writer():
            held[name] = whole.to("cpu", dtype if whole.is_floating_point() else None)
        del whole
    if is_writer():
        path.parent.mkdir(exist_ok=True)
        write_tensors(path, held)


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    if not isinstance(tensor, DTensor):
        return tensor.detach()
    at_home: Any = tensor.detach().to(tensor.device_mesh.device_type)  # its rows may be offloaded to the host
    whole: torch.Tensor = at_home.full_tensor()
    return whole


def refuse_filled(folder: Path) -> None:
    """Raises: DataError where a folder to be made holds something already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} exists and is not empty. Name another folder, or remove it first.")


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes a .safetensors file whole or not at all; tensors that share memory are written each in full.

    metadata: goes into the file's header beside its format.
    """
    seen: set[int] = set()
    plain = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        plain[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        safetensors.torch.save_file(plain, temporary, metadata={"format": "pt", **(metadata or {})})
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # safetensors makes files that only their owner may read
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
