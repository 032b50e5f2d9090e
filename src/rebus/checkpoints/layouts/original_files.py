"""What LLaVA's own code writes beside or in place of a whole folder: mm_projector.bin of the first stage, adapters with
non_lora_trainables.bin; and whole folders, written back so that what Rebus does not hold survives.
"""

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rebus.checkpoints.adapter_files import SETTINGS, Home, settings_at, stored_at, tensors_at
from rebus.checkpoints.layouts import original_llava as layout
from rebus.checkpoints.layouts.folder import read_json
from rebus.checkpoints.layouts.original_llava import ADAPTERS, REST, unwrapped
from rebus.checkpoints.layouts.stored import Named, tensors_of, weight_files
from rebus.checkpoints.save import write_tensors
from rebus.errors import DataError, StrangerError
from rebus.fingerprint import write_atomically
from rebus.log import track
from rebus.model.adapters import add_lora
from rebus.model.assemble import fill
from rebus.model.config import LoraConfig
from rebus.model.families import VisionLanguageModel


def into_ours(model: VisionLanguageModel, stored: Iterable[Named]) -> Iterator[Named]:
    """Stored tensors by our names; a newline that the image rule never uses is left out."""
    newline = isinstance(getattr(model.connector, "image_newline", None), nn.Parameter)
    for name, tensor in stored:
        if newline or name != layout.NEWLINE:
            yield from layout.to_ours(name, tensor)


def stored_in(folder: Path, model: VisionLanguageModel) -> Iterator[Named]:
    """All tensors of a whole folder by our names; the tower's from where its config says, if the folder has none."""
    yield from into_ours(model, layout.tensors(folder))


def read_projector(model: VisionLanguageModel, path: Path) -> None:
    """Puts mm_projector.bin into the model: the connector, and the newline where file and model have one.

    Raises: DataError where the file holds more than tensors or lacks a layer of the connector.
    """
    found = {unwrapped(name): tensor for name, tensor in tensors_of(path)}
    ours = dict(into_ours(model, found.items()))
    wanted = {f"connector.mlp.{name}" for name, _ in model.connector.mlp.named_parameters()}
    if not wanted <= set(ours):
        lost = sorted(wanted - set(ours))
        raise DataError(f"{path} lacks {len(lost)} of {len(wanted)} tensors of the connector, such as '{lost[0]}'.")
    fill(model, ours.items(), origin=str(path), dtype=model.head.weight.dtype, device=model.device)


def write_projector(model: VisionLanguageModel, path: Path) -> None:
    """Writes mm_projector.bin; the newline goes with it, which LLaVA's own first stage forgets."""
    _write_bin(path, dict(_connector(model)))


def _connector(model: VisionLanguageModel) -> Iterator[Named]:
    for name, tensor in model.connector.state_dict().items():
        yield from layout.from_ours(f"connector.{name}", tensor, connector=model.config.connector)


def _write_bin(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """The one format of others that is written by torch.save: plain tensors that any weights-only reader takes."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        torch.save({name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_lora(model: VisionLanguageModel, folder: Path) -> None:
    """Puts the adapters and what else was trained with them (projector, newline, tower) on the base in `model`.

    Raises: DataError where a file is missing or an adapter has no place.
    """
    settings = json.loads((folder / SETTINGS).read_text())
    path = next(folder / name for name in ADAPTERS if (folder / name).is_file())
    add_lora(model, _lora_config(folder, settings))
    try:
        fill(model, stored_at(model, path, _home(folder)), origin=str(path))
    except StrangerError as error:  # here no training is named that it could be a stranger to
        raise DataError(str(error)) from error
    if not (folder / REST).is_file():
        raise DataError(f"{folder} has no {REST}: LLaVA writes it at the end of training, with the projector in it.")
    rest = into_ours(model, ((unwrapped(name), tensor) for name, tensor in tensors_of(folder / REST)))
    fill(model, rest, origin=str(folder / REST), dtype=model.head.weight.dtype, device=model.device)


def _home(base: Path) -> Home:
    """LLaVA's names of the language model are those that it has alone."""
    return Home(".", base, (("language.model.", "model."),))


def _lora_config(folder: Path, settings: dict[str, Any]) -> LoraConfig:
    for name in ("use_dora", "rank_pattern", "alpha_pattern", "modules_to_save"):
        if settings.get(name):
            raise DataError(f"{folder / SETTINGS} has {name} = {settings[name]}, which Rebus does not compute.")
    targets = settings["target_modules"]
    if isinstance(targets, str):
        raise DataError(f"{folder / SETTINGS} has target_modules = '{targets}', a pattern; Rebus reads lists of names.")
    return LoraConfig(
        rank=settings["r"],
        alpha=settings["lora_alpha"],
        dropout=settings["lora_dropout"],
        rslora=settings.get("use_rslora", False),
        targets=tuple(sorted(targets)),
    )


def write_lora(model: VisionLanguageModel, folder: Path, *, base: str) -> None:
    """adapter_model.safetensors, adapter_config.json, config.json and non_lora_trainables.bin. base: the folder or hub
    id that the adapters stand on, as LLaVA's `--model-base` will name it.

    Raises: DataError where there are no adapters, or some that LLaVA has no place for.
    """
    if model.config.lora is None:
        raise DataError("the model has no adapters; write a whole folder instead.")
    if model.config.lora.on != "language":
        raise DataError("LLaVA's own layout has adapters on the language model alone; merge them: export --merge.")
    folder.mkdir(parents=True, exist_ok=True)
    home = _home(Path(base))
    write_tensors(folder / ADAPTERS[0], tensors_at(model, home))
    write_atomically(folder / SETTINGS, json.dumps(settings_at(model, home, base), indent=2) + "\n")
    tower = [(f"tower.{name}", tensor) for name, tensor in model.tower.named_parameters() if tensor.requires_grad]
    rest = dict([*_connector(model), *(named for pair in tower for named in layout.from_ours(*pair))])
    _write_bin(folder / REST, {f"base_model.model.{name}": tensor for name, tensor in rest.items()})
    layout.write_configs(model, {}, folder)


def write_folder(model: VisionLanguageModel, source: Path, out: Path) -> None:
    """The model as LLaVA lays it out, with the names, dtypes, shards and fields of the folder `source` that it came
    from. Layers of the tower that Rebus does not hold, because nothing reads them, are copied from there.

    Raises: DataError with the reason where the layout cannot hold the model.
    """
    reason = layout.refusal(model) or _unwritten(model)
    if reason is not None:
        raise DataError(f"this model cannot be written as LLaVA's own folder: {reason}.")
    out.mkdir(parents=True, exist_ok=True)
    state = model.state_dict()
    where: dict[str, str] = {}
    files = weight_files(source)
    for path in track(files, "writing"):
        tensors = {name: _current(state, name, tensor) for name, tensor in tensors_of(path)}
        target = _safetensors_name(path.name)
        write_tensors(out / target, tensors)
        where |= dict.fromkeys(tensors, target)
    if len(files) > 1:
        size = sum((out / name).stat().st_size for name in set(where.values()))
        index = {"metadata": {"total_size": size}, "weight_map": where}
        write_atomically(out / "model.safetensors.index.json", json.dumps(index, indent=2) + "\n")
    _write_config(model, source, out)


def _unwritten(model: VisionLanguageModel) -> str | None:
    """What would be lost, because stored names have no place for it."""
    if model.config.lora is not None:
        return "its adapters are not merged; merge them, or write a LoRA folder"
    connector = model.connector
    if not bool((connector.feature_mean == 0).all() and (connector.feature_std == 1).all()):
        return "its connector has feature statistics; `rebus export --layout original_llava` folds them in"
    return None


def _current(state: dict[str, torch.Tensor], name: str, stored: torch.Tensor) -> torch.Tensor:
    """What the model holds now under a stored name, in the dtype it was stored in; else what was stored."""
    for ours, _ in layout.to_ours(name, stored):
        if ours in state:
            return state[ours].to(stored.dtype)
    return stored


def _safetensors_name(name: str) -> str:
    return re.sub(r"^pytorch_model", "model", name).removesuffix(".bin").removesuffix(".safetensors") + ".safetensors"


def _write_config(model: VisionLanguageModel, source: Path, out: Path) -> None:
    """config.json as it was, but for an image rule that is another now; and all small files beside it."""
    for path in source.iterdir():
        if path.is_file() and path.suffix in (".json", ".jinja", ".model", ".txt") and "index" not in path.name:
            shutil.copy(path, out / path.name)
    settings = read_json(source / "config.json")
    before = layout.read(source)
    if before.image != model.image:
        fields = layout.mm_fields(model)
        settings |= {name: value for name, value in fields.items() if name.startswith("image_") or "merge" in name}
    write_atomically(out / "config.json", json.dumps(settings, indent=2) + "\n")
