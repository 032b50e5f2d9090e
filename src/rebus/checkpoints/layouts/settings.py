"""Configs as they are read, and in the form that transformers 4.40 to 5.17, vLLM and SGLang read; a model's parts."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers

from rebus.checkpoints.layouts.folder import read_json
from rebus.errors import DataError
from rebus.model.config import ModelConfig
from rebus.model.families import VisionLanguageModel
from rebus.pictures.config import ImageConfig

NOISE = (
    "transformers_version",
    "architectures",
    "output_hidden_states",
    "output_attentions",
    "return_dict",
    "dtype",
    "torch_dtype",
    "chunk_size_feed_forward",
    "is_encoder_decoder",
    "id2label",
    "label2id",
    "problem_type",
    "_name_or_path",
)
"""What every config of transformers says and no model needs."""

NATIVE = ("qwen2_vl", "qwen2_5_vl")
"""Kinds of towers that take pictures in their own shape."""


@dataclass(frozen=True)
class Composition:
    """What a foreign folder holds, in our terms.

    vision, text: configs of tower and language model as transformers 5.17 takes them (`model_type` inside), as JSON
    values. tokens: the TokensConfig that the weights were trained with, as JSON values; without `template` where the
    folder does not say which.
    """

    model: ModelConfig
    image: ImageConfig
    vision: dict[str, Any]
    text: dict[str, Any]
    tokens: dict[str, Any]


def hub_config(folder: Path, *sections: str) -> Any:
    """transformers' config of a folder. sections: what its config.json must hold, or transformers would make one up.

    Raises: DataError.
    """
    missing = set(sections) - set(read_json(folder / "config.json"))
    if missing:
        raise DataError(f"{folder / 'config.json'} has no {' and no '.join(sorted(missing))}. Fetch it again.")
    return transformers.AutoConfig.from_pretrained(folder, local_files_only=True)


def plain(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in NOISE}


def old_form(settings: dict[str, Any]) -> dict[str, Any]:
    """A text config with `rope_theta` and `rope_scaling` in place of transformers 5's `rope_parameters`."""
    found = plain(settings)
    rope = dict(found.pop("rope_parameters", None) or {})
    found.pop("layer_types", None)
    if "rope_theta" in rope:
        found["rope_theta"] = rope.pop("rope_theta")
    kind = rope.get("rope_type", "default")
    found["rope_scaling"] = None if kind == "default" else {**rope, "type": kind}
    return found


def text_of(model: VisionLanguageModel, num_rows: int) -> dict[str, Any]:
    """The language model's config in the old form. num_rows: of the vocabulary."""
    return {**old_form(model.language.config.to_dict()), "vocab_size": num_rows}


def is_tied(model: VisionLanguageModel) -> bool:
    return model.head.weight is model.language.get_input_embeddings().weight


def num_blocks(model: VisionLanguageModel) -> int:
    """Transformer blocks that the tower holds."""
    matches = (re.match(r"tower\.model\.encoder\.layers?\.(\d+)\.", name) for name in model.state_dict())
    return 1 + max((int(match[1]) for match in matches if match), default=-1)


def vision_of(model: VisionLanguageModel) -> dict[str, Any] | None:
    """The tower's config as JSON values, of as many layers as make `select_layer` the chosen one; None for towers that
    transformers does not know."""
    if model.config.tower.kind == "transformers":
        layer, kept = model.config.tower.select_layer, num_blocks(model)
        return {**model.tower.model.config.to_dict(), "num_hidden_layers": kept if layer >= 0 else kept - 1 - layer}
    if model.config.tower.kind in NATIVE and model.config.tower.weights is not None:
        return stored_vision(model.config.tower.weights)
    return None


def stored_vision(folder: Path) -> dict[str, Any]:
    """The vision config of a hub folder, with its defaults; a folder of a tower alone holds nothing else.

    Raises: DataError where there is no config.json.
    """
    body = read_json(folder / "config.json")
    if not body:
        raise DataError(f"no config.json at {folder}, which the vision tower comes from. Was it moved?")
    if "vision_config" not in body:
        return body
    return hub_config(folder).vision_config.to_dict()


def language_refusal(model: VisionLanguageModel) -> str | None:
    """Language models are renamed by their prefix alone; one that has another is not."""
    strangers = [name for name in model.language.state_dict() if not name.startswith(("model.", "lm_head."))]
    if strangers:
        return f"its language model ({model.language.config.model_type}) names tensors as '{strangers[0]}'"
    return None
