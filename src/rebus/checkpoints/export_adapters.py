"""Adapters leave as they are, without the weights that they stand on: for peft over a whole model of the hub, or for
LLaVA's own code over a language model. The connector, which trains beside them, goes along."""

from pathlib import Path
from typing import Any

import torch

from rebus.checkpoints.adapter_files import SETTINGS, WEIGHTS, homes, settings_at, tensors_at
from rebus.checkpoints.export import built, folded_connector
from rebus.checkpoints.hub import layout_of
from rebus.checkpoints.layouts import original_llava, tokenizer
from rebus.checkpoints.layouts.folder import write_json
from rebus.checkpoints.layouts.original_files import write_lora
from rebus.checkpoints.save import write_tensors
from rebus.errors import ConfigError
from rebus.model.families import VisionLanguageModel

CONNECTOR = "connector.safetensors"
LLAVA = "original_llava"


def export_adapters(
    model: VisionLanguageModel, tokens: dict[str, Any], folder: Path, layout: str | None = None, *, tower: bool = False
) -> str:
    """Writes `folder` and returns its form: `peft`, or `original_llava` where the base is a language model alone.

    tower: whether the tower's own weights were trained as well, which only LLaVA's form takes along.
    Raises: ConfigError with the reason where neither form can hold the adapters.
    """
    if model.config.lora is None:
        raise ConfigError("the model has no adapters to leave unmerged. Export it without --no-merge.")
    whole = layout_of(model.config.language) is not None
    form = "peft" if whole else LLAVA
    if layout not in (None, form):
        raise ConfigError(f"unmerged, these adapters leave in the form '{form}', not '{layout}'. Or merge them.")
    reason = _refusal(model, tower) if whole else original_llava.refusal(model)
    if reason is not None:
        raise ConfigError(f"the adapters cannot leave unmerged: {reason}. Merge them: rebus export --merge.")
    with built(folder) as building:
        if whole:
            _write_peft(model, tokens, building)
        else:
            model.tower.requires_grad_(tower)
            write_lora(model, building, base=str(model.config.language))
    return form


def _refusal(model: VisionLanguageModel, tower: bool) -> str | None:
    if tower:
        return "the tower's own weights were trained too, for which peft has no place"
    if len(homes(model.config)) > 1 or homes(model.config)[0].base != model.config.language:
        return "language model and tower come from different folders"
    return None


def _write_peft(model: VisionLanguageModel, tokens: dict[str, Any], folder: Path) -> None:
    """The adapters as peft reads them; what trained beside them by the names that the base has in transformers 5."""
    [home] = homes(model.config)
    write_tensors(folder / WEIGHTS, tensors_at(model, home))
    write_json(folder / SETTINGS, settings_at(model, home))
    hub: Any = layout_of(home.base)
    named = (pair for name, tensor in folded_connector(model) for pair in hub.from_ours(name, tensor))
    beside: dict[str, torch.Tensor] = {f"model.{name}": tensor for name, tensor in named}
    write_tensors(folder / CONNECTOR, beside)
    tokenizer.copy_tokenizer(Path(tokens["tokenizer"]), folder, tokens)
