"""A model from its configs alone, parameters without memory, and weights streamed into it one tensor at a time: the
host never holds more than the model and one tensor, a rank of several never more than its own rows and one tensor."""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from rebus.errors import DataError
from rebus.model.config import ModelConfig
from rebus.model.connector import build_connector
from rebus.model.families import VisionLanguageModel, language_from, tower_from
from rebus.model.quantised import hold, is_quantised
from rebus.pictures.config import ImageConfig
from rebus.towers.build import build_tower

_one_at_a_time = threading.Lock()


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Modules that this thread makes inside have parameters of a shape but no memory; their buffers (rotary tables)
    are real. What other threads make meanwhile is whole."""
    register, builder = nn.Module.register_parameter, threading.get_ident()

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta and threading.get_ident() == builder:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
        register(module, name, parameter)

    with _one_at_a_time:
        nn.Module.register_parameter = on_meta  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            nn.Module.register_parameter = register  # type: ignore[method-assign]


def assemble(
    config: ModelConfig,
    image: ImageConfig,
    *,
    vision: dict[str, Any] | None,
    text: dict[str, Any],
    with_weights: bool = True,
) -> VisionLanguageModel:
    """The model without weights. vision, text: the hub's configs of tower and language model, as JSON values.

    vision None: for towers that the hub has no config of. They are made for real and emptied, so their weights must be
    there unless `with_weights` is False. What was drawn at random before stays as it was.
    Raises: ConfigError where the parts do not fit one another.
    """
    with torch.random.fork_rng(devices=[]):
        made = None if vision is not None else _emptied(build_tower(config.tower, with_weights=with_weights))
        with parameters_on_meta():
            tower = made or tower_from(config.tower, vision or {})
            language = language_from(text, config)
            width = language.config.get_text_config().hidden_size
            connector = build_connector(config, image, tower, width)
    return VisionLanguageModel(config, image, tower.requires_grad_(False), connector, language)


def _emptied(module: nn.Module) -> nn.Module:
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            setattr(part, name, nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad))
    return module


def fill(
    model: nn.Module,
    tensors: Iterable[tuple[str, torch.Tensor]],
    *,
    origin: str,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    rows_on: torch.device | str | None = None,
) -> None:
    """Copies tensors in by name. What the tower has no place for (layers above the chosen one) is left out.

    Of a sharded parameter (FSDP2 on the model while it was on the meta device) this rank's rows alone are copied.
    A layer under an adapter takes the tensors that go by its plain name.
    dtype: of plain parameters; None: each in that which it has. Rows always keep theirs. rows_on: where rows lie, if
    not on `device`: in the host's memory, when FSDP2 offloads.
    Raises: DataError that names `origin` where a tensor is missing, has another shape or no place.
    """
    places = _places(model)
    missing = {name for name, parameter in model.named_parameters() if parameter.device.type == "meta"}
    _claim_rows(model, rows_on or device)
    buffers = dict(model.named_buffers())
    for name, tensor in tensors:
        if name in buffers:
            buffers[name].copy_(tensor)
        elif name in places:
            _put(model, places[name], tensor, dtype, device, f"{origin}: {name}")
            missing -= set(places[name])
        elif not name.startswith("tower."):
            raise DataError(f"{origin} holds '{name}', which the model has no place for. Is its config the right one?")
    if missing:
        raise DataError(f"{origin} lacks {len(missing)} tensors, such as '{min(missing)}'. Fetch or import it again.")
    _move_buffers(model, device)


def _places(model: nn.Module) -> dict[str, list[str]]:
    """Every parameter's name -> all names it goes by (tied embeddings have two); also without peft's `base_layer`."""
    by_identity: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        by_identity.setdefault(id(parameter), []).append(name)
    found = {name: names for names in by_identity.values() for name in names}
    return found | {name.replace(".base_layer.", "."): names for name, names in found.items()}


def _claim_rows(model: nn.Module, device: torch.device | str) -> None:
    """Memory for this rank's rows of sharded parameters. Through `_apply`, as `to_empty` does it: there FSDP2's modules
    pad their rows, so that all ranks send equally many."""

    def claimed(tensor: torch.Tensor) -> torch.Tensor:
        is_empty = isinstance(tensor, DTensor) and tensor.device.type == "meta"
        return torch.empty_like(tensor, device=device) if is_empty else tensor

    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        model._apply(claimed)


@torch.no_grad()
def _put(
    model: nn.Module,
    names: list[str],
    tensor: torch.Tensor,
    dtype: torch.dtype | None,
    device: torch.device | str,
    what: str,
) -> None:
    old = model.get_parameter(names[0])
    if old.shape != tensor.shape:
        raise DataError(f"{what} is {tuple(tensor.shape)}, the model's is {tuple(old.shape)}. Is its config its own?")
    layer = model.get_submodule(names[0].rpartition(".")[0])
    if is_quantised(layer) and old is layer.weight:
        hold(layer, tensor.to(device))
        return
    if isinstance(old, DTensor):
        old.to_local().copy_(_rows(tensor, old))
        return
    values = torch.empty_like(old, dtype=dtype or old.dtype, device=device).copy_(tensor)
    new = nn.Parameter(values, requires_grad=old.requires_grad)
    for name in names:
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, new)


def _rows(tensor: torch.Tensor, like: DTensor) -> torch.Tensor:
    """The part of a whole tensor that this rank holds; of a mapped file, no other part is read."""
    (chunk,) = like.__create_chunk_list__()
    for dim, (start, length) in enumerate(zip(chunk.offsets, chunk.sizes, strict=True)):
        tensor = tensor.narrow(dim, min(start, tensor.shape[dim]), length)
    return tensor


def _move_buffers(model: nn.Module, device: torch.device | str) -> None:
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)
