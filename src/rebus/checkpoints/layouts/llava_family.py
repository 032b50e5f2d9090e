"""What LLaVA and LLaVA-NeXT share as transformers lays them out: three parts side by side under three generations of
names (4.x, 4.52, in memory of 5), and a tower whose layers above the chosen one are stored though nothing needs them.
"""

import re
from pathlib import Path
from typing import Any

import torch

from rebus.checkpoints.layouts.folder import read_json, write_json
from rebus.checkpoints.layouts.settings import (
    hub_config,
    is_tied,
    language_refusal,
    num_blocks,
    plain,
    text_of,
    vision_of,
)
from rebus.checkpoints.layouts.stored import tower_tensors, weight_files
from rebus.checkpoints.layouts.tokenizer import num_rows, token_id
from rebus.errors import DataError
from rebus.model.config import ModelConfig
from rebus.model.families import VisionLanguageModel
from rebus.pictures.config import AnyresConfig, FixedConfig
from rebus.towers.config import TowerConfig

IMAGE_TOKEN = "<image>"
PLACEHOLDERS = {"image": "<image>\n"}
LAYERS = "tower.model.encoder.layers."
TOWERS = ("clip_vision_model", "siglip_vision_model")
TO_OURS = (
    (r"^(model\.)?vision_tower\.(vision_model\.)?", "tower.model."),
    (r"^(model\.)?multi_modal_projector\.linear_1\.", "connector.mlp.0."),
    (r"^(model\.)?multi_modal_projector\.linear_2\.", "connector.mlp.2."),
    (r"^(model\.)?image_newline$", "connector.image_newline"),
    (r"^(language_model\.)?lm_head\.", "language.lm_head."),
    (r"^(model\.)?language_model\.(model\.)?", "language.model."),
)
FROM_OURS = (
    ("tower.model.", "vision_tower.vision_model."),
    ("connector.mlp.0.", "multi_modal_projector.linear_1."),
    ("connector.mlp.2.", "multi_modal_projector.linear_2."),
    ("connector.image_newline", "image_newline"),
    ("language.", "language_model."),
)


def to_ours(name: str, tensor: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    for pattern, ours in TO_OURS:
        renamed, found = re.subn(pattern, ours, name)
        if found:
            return [] if renamed.endswith("rotary_emb.inv_freq") else [(renamed, tensor)]
    return [(name, tensor)]


def from_ours(name: str, tensor: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """In the names of transformers 4.x, which all later ones, vLLM and SGLang read."""
    for ours, theirs in FROM_OURS:
        if name.startswith(ours):
            return [(theirs + name.removeprefix(ours), tensor)]
    return []


def read_parts(folder: Path) -> tuple[Any, ModelConfig, dict[str, Any], dict[str, Any]]:
    """transformers' config, our model's, and the configs of tower and language model as JSON values.

    Raises: DataError where the folder asks for what Rebus does not compute.
    """
    settings = hub_config(folder, "vision_config", "text_config")
    _check(settings, folder)
    vision, text = settings.vision_config.to_dict(), plain(settings.text_config.to_dict())
    text["tie_word_embeddings"] = settings.tie_word_embeddings
    takes_class = settings.vision_feature_select_strategy == "full" and vision["model_type"] == "clip_vision_model"
    tower = TowerConfig(
        kind="transformers",
        weights=folder,
        image_size=vision["image_size"],
        select_layer=settings.vision_feature_layer,
        features="cls_patch" if takes_class else "patch",
    )
    return settings, ModelConfig(tower=tower, connector="mlp2x_gelu", language=folder), vision, text


def _check(settings: Any, folder: Path) -> None:
    is_siglip = settings.vision_config.model_type == "siglip_vision_model"
    wrong = {
        f"a tower '{settings.vision_config.model_type}'": settings.vision_config.model_type not in TOWERS,
        "features of several layers": not isinstance(settings.vision_feature_layer, int),
        "a connector without biases": not settings.multimodal_projector_bias,
        f"a connector with {settings.projector_hidden_act}": settings.projector_hidden_act != "gelu",
        "strategy 'default' on SigLIP (it drops a patch)": is_siglip
        and settings.vision_feature_select_strategy == "default",
    }
    found = [what for what, is_so in wrong.items() if is_so]
    if found:
        raise DataError(f"{folder / 'config.json'} asks for {' and '.join(found)}, which Rebus does not compute.")


def refusal_of(model: VisionLanguageModel, image: FixedConfig | AnyresConfig) -> str | None:
    """Reasons that hold for both layouts."""
    config, side = model.config, round(model.tower.num_tokens**0.5)
    if config.tower.kind != "transformers" or vision_of(model)["model_type"] not in TOWERS:  # type: ignore[index]
        kind = (vision_of(model) or {}).get("model_type", config.tower.kind)
        return f"its tower is a {kind}; transformers has LLaVA around CLIP and SigLIP"
    if config.connector != "mlp2x_gelu":
        return f"its connector is '{config.connector}'; LLaVA's in transformers is two linear layers, 'mlp2x_gelu'"
    if config.connector_norm:
        return "its connector begins with a LayerNorm (connector_norm), which LLaVA's in transformers has not"
    if config.tower.features != "patch":
        return "its features hold the class token, which is no part of a square grid"
    if config.mrope_section is not None:
        return "its language model has M-RoPE"
    if image.tokens_per_side != side:
        made, pooled = side**2, image.tokens_per_side**2
        return (
            f"it pools the tower's {made} features to {pooled} tokens a picture, and LLaVA in transformers pools "
            f"nothing; the same weights with tokens_per_side {side} ({made} tokens) can leave"
        )
    return language_refusal(model)


def unheld(model: VisionLanguageModel) -> dict[str, torch.Tensor]:
    """What stands above the chosen layer: as the folder has it that the tower comes from, if it is there still.

    Else one layer of zeros, which adds nothing to what passes it, and a fresh norm: so the chosen layer is the last but
    one, as in every published LLaVA. Behind hidden_states[-1] stands a norm, and whether it is taken before or after
    that is each program's own affair.
    """
    held = {name: tensor for name, tensor in model.state_dict().items() if ".lora_" not in name}
    state = {n.replace(".base_layer.", "."): tensor for n, tensor in held.items() if n.startswith("tower.model.")}
    number = num_blocks(model)
    last = f"{LAYERS}{number - 1}."
    like = {name.removeprefix(last): tensor for name, tensor in state.items() if name.startswith(last)}
    width = like["layer_norm1.weight"]
    norm = {"weight": torch.ones_like(width), "bias": torch.zeros_like(width)}
    above = {f"tower.model.post_layernorm.{leaf}": tensor for leaf, tensor in norm.items()} | _origin(model, state)
    if not num_dead(above):
        above |= {f"{LAYERS}{number}.{leaf}": torch.zeros_like(tensor) for leaf, tensor in like.items()}
    return above


def num_dead(above: dict[str, torch.Tensor]) -> int:
    """Layers among what `unheld` found."""
    return sum(name.startswith(LAYERS) and name.endswith(".layer_norm1.weight") for name in above)


def _origin(model: VisionLanguageModel, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What the tower's own folder holds beyond the model; nothing where another tower lies there by now."""
    folder = model.config.tower.weights
    if folder is None or not folder.is_dir() or not weight_files(folder):
        return {}
    stored = dict(tower_tensors(folder))
    if any(name not in stored or stored[name].shape != tensor.shape for name, tensor in state.items()):
        return {}
    return {name: tensor for name, tensor in stored.items() if name not in state and "position_ids" not in name}


def write_config(model: VisionLanguageModel, folder: Path, more: dict[str, Any]) -> None:
    """config.json. more: what is the layout's own."""
    vision, above = plain(vision_of(model) or {}), unheld(model)
    vision["num_hidden_layers"] = num_blocks(model) + num_dead(above)
    if vision["model_type"] == "siglip_vision_model":
        vision["vision_use_head"] = any(name.startswith("tower.model.head.") for name in above)
    text = text_of(model, num_rows(model, folder))
    text["tie_word_embeddings"] = is_tied(model)
    body = {
        "image_token_index": token_id(folder, IMAGE_TOKEN),
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "vision_feature_layer": -1 - num_dead(above),
        "vision_feature_select_strategy": strategy_of(model),
        "image_seq_length": model.tower.num_tokens,
        "tie_word_embeddings": is_tied(model),
        "vision_config": vision,
        "text_config": text,
    }
    write_json(folder / "config.json", {**more, **body})


def strategy_of(model: VisionLanguageModel) -> str:
    """`default` drops the first token, which is CLIP's class token; SigLIP has none to drop."""
    return "default" if (vision_of(model) or {}).get("model_type") == "clip_vision_model" else "full"


def write_processor(model: VisionLanguageModel, folder: Path, name: str, images: dict[str, Any]) -> None:
    """preprocessor_config.json, processor_config.json. name: of transformers' processor. images: settings."""
    settings = {
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "do_convert_rgb": True,
        "do_resize": True,
        "resample": 3,
        "processor_class": name,
        **images,
    }
    write_json(folder / "preprocessor_config.json", settings)
    is_clip = strategy_of(model) == "default"
    body = {
        "processor_class": name,
        "image_token": IMAGE_TOKEN,
        "patch_size": (vision_of(model) or {})["patch_size"],
        "num_additional_image_tokens": 1 if is_clip else 0,
        "vision_feature_select_strategy": strategy_of(model),
    }
    write_json(folder / "processor_config.json", body)
    tokenizer = read_json(folder / "tokenizer_config.json")
    write_json(folder / "tokenizer_config.json", {**tokenizer, "processor_class": name})
