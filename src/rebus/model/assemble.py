"""A model from its configs alone, parameters without memory, and weights streamed into it one tensor at a time: the
host never holds more than the model and one tensor."""

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from rebus.errors import DataError
from rebus.model.config import ModelConfig
from rebus.model.connector import build_connector
from rebus.model.families import VisionLanguageModel, language_from, tower_from
from rebus.pictures.config import ImageConfig

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
    config: ModelConfig, image: ImageConfig, *, vision: dict[str, Any], text: dict[str, Any]
) -> VisionLanguageModel:
    """The model without weights. vision, text: the hub's configs of tower and language model, as JSON values.

    Raises: ConfigError where the parts do not fit one another.
    """
    with parameters_on_meta():
        tower = tower_from(config.tower, vision).requires_grad_(False)
        language = language_from(text, config)
        connector = build_connector(config, image, tower, language.config.hidden_size)
    return VisionLanguageModel(config, image, tower, connector, language)


def fill(
    model: VisionLanguageModel,
    tensors: Iterable[tuple[str, torch.Tensor]],
    *,
    origin: str,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> None:
    """Puts tensors in by name. What the tower has no place for (layers above the chosen one) is left out.

    Raises: DataError that names `origin` where a tensor is missing, has another shape or no place.
    """
    places = _places(model)
    missing = {name for name, parameter in model.named_parameters() if parameter.is_meta}
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
    model.to(device)  # buffers


def _places(model: nn.Module) -> dict[str, list[str]]:
    """Every parameter's name -> all names it goes by (tied embeddings have two)."""
    by_identity: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        by_identity.setdefault(id(parameter), []).append(name)
    return {name: names for names in by_identity.values() for name in names}


def _put(
    model: nn.Module,
    names: list[str],
    tensor: torch.Tensor,
    dtype: torch.dtype,
    device: torch.device | str,
    what: str,
) -> None:
    old = model.get_parameter(names[0])
    if old.shape != tensor.shape:
        raise DataError(f"{what} is {tuple(tensor.shape)}, the model's is {tuple(old.shape)}. Is its config its own?")
    new = nn.Parameter(tensor.to(device, dtype), requires_grad=old.requires_grad)
    for name in names:
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, new)
