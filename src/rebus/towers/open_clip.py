"""OpenCLIP's folders (open_clip_config.json, open_clip_model.safetensors; DFN's networks are published so), read into
transformers' CLIPModel: the same network under other names."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rebus.errors import ConfigError, DataError

if TYPE_CHECKING:
    import torch

CONFIG = "open_clip_config.json"
WEIGHTS = "open_clip_model.safetensors"

NEUTRAL: dict[str, Any] = {
    "timm_model_name": None,
    "hf_model_name": None,
    "hf_tokenizer_name": None,
    "ls_init_value": None,
    "attentional_pool": False,
    "pos_embed_type": "learnable",
    "pool_type": None,
    "final_ln_after_pool": False,
    "no_ln_pre": False,
    "no_causal_mask": False,
    "embed_cls": False,
    "proj_bias": False,
    "proj_type": "linear",
    "norm_kwargs": None,
    "act_kwargs": None,
    "qk_norm": False,
    "scaled_cosine": False,
    "scale_heads": False,
    "output_tokens": False,
    "input_patchnorm": False,
}
"""Settings of a tower that make it another network than CLIPModel, and what they are where they do not."""

POOLS = {"vision_cfg": ("tok", None), "text_cfg": ("argmax", None)}

SHAPES = {
    "vision_cfg": ("image_size", "layers", "width", "head_width", "mlp_ratio", "patch_size", "patch_dropout"),
    "text_cfg": ("context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "pad_id"),
}
"""Settings that CLIPModel has too. patch_dropout is for training alone; pad_id is never looked at before the end."""

BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
WHOLE = {
    "logit_scale": "logit_scale",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}
PROJECTIONS = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}
"""Written [in, out] there, [out, in] here."""


def is_open_clip(folder: Path) -> bool:
    """Whether the folder is OpenCLIP's alone: where transformers' own files lie beside, those are read."""
    has_own = (folder / "config.json").is_file() and any(folder.glob("model*.safetensors"))
    return (folder / CONFIG).is_file() and not has_own


def open_clip_settings(folder: Path) -> dict[str, Any]:
    """open_clip_config.json: `model_cfg` and `preprocess_cfg`. Raises: DataError where it is none."""
    try:
        body = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        body["model_cfg"]["vision_cfg"], body["model_cfg"]["text_cfg"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / CONFIG} is not a configuration of OpenCLIP ({error}). Fetch it again.") from error
    return body


def clip_config(model: dict[str, Any], folder: Path) -> Any:
    """`model_cfg` -> transformers.CLIPConfig. Raises: ConfigError where the network is no CLIPModel."""
    import transformers

    vision, text = model["vision_cfg"], model["text_cfg"]
    _refuse_others(model, folder)
    activation = {"hidden_act": "quick_gelu" if model.get("quick_gelu") else "gelu"}
    width = int(vision.get("width", 768))
    eyes = {
        **activation,
        "image_size": _square(vision.get("image_size", 224)),
        "patch_size": _square(vision.get("patch_size", 16)),
        "hidden_size": width,
        "intermediate_size": int(width * vision.get("mlp_ratio", 4.0)),
        "num_hidden_layers": vision.get("layers", 12),
        "num_attention_heads": width // vision.get("head_width", 64),
    }
    breadth, vocabulary = int(text.get("width", 512)), int(text.get("vocab_size", 49408))
    words = {
        **activation,
        "vocab_size": vocabulary,
        "max_position_embeddings": text.get("context_length", 77),
        "hidden_size": breadth,
        "intermediate_size": int(breadth * text.get("mlp_ratio", 4.0)),
        "num_hidden_layers": text.get("layers", 12),
        "num_attention_heads": text.get("heads", 8),
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,  # the greatest id, which OpenCLIP pools at
    }
    return transformers.CLIPConfig(text_config=words, vision_config=eyes, projection_dim=model["embed_dim"])


def read_open_clip(folder: Path, config: Any, dtype: "torch.dtype") -> Any:
    """transformers.CLIPModel with the folder's weights, on the CPU.

    Raises: DataError where the weights are missing or are not those of the configuration.
    """
    import torch
    import transformers
    from safetensors.torch import load_file
    from transformers.initialization import no_init_weights

    if not (folder / WEIGHTS).is_file():
        raise DataError(_without_weights(folder))
    found = _renamed(load_file(folder / WEIGHTS), folder)
    with no_init_weights():
        model: Any = transformers.CLIPModel._from_config(config, dtype=dtype, attn_implementation="sdpa")
    places = dict(model.named_parameters())
    if set(found) != set(places):
        missing, over = sorted(set(places) - set(found)), sorted(set(found) - set(places))
        raise DataError(
            f"{folder / WEIGHTS} is not the network of {CONFIG}: it lacks {len(missing)} tensors {missing[:1]} and has "
            f"{len(over)} that this network has not {over[:1]}."
        )
    for name, tensor in found.items():
        if tensor.numel() != places[name].numel() or (tensor.ndim and tensor.shape != places[name].shape):
            shapes = tuple(tensor.shape), tuple(places[name].shape)
            raise DataError(f"{folder / WEIGHTS}: '{name}' is {shapes[0]}, {CONFIG} says {shapes[1]}.")
        with torch.no_grad():
            places[name].copy_(tensor.reshape(places[name].shape))
    return model


def _square(value: Any) -> int:
    sides = set(value) if isinstance(value, list | tuple) else {value}
    if len(sides) != 1:
        raise ConfigError(f"{CONFIG}: pictures or patches of {value} are no squares.")
    return int(sides.pop())


def _refuse_others(model: dict[str, Any], folder: Path) -> None:
    if model.get("custom_text") or model.get("multimodal_cfg"):
        raise ConfigError(
            f"{folder}: towers of another make (custom_text, multimodal_cfg) are not read. Convert the model with "
            "transformers, or take the copy that its publisher made for it."
        )
    for tower, shapes in SHAPES.items():
        for name, value in model[tower].items():
            allowed = POOLS[tower] if name == "pool_type" else (NEUTRAL[name],) if name in NEUTRAL else None
            if name not in shapes and (allowed is None or value not in allowed):
                raise ConfigError(
                    f"{folder}: {tower}.{name} = {value!r} makes this another network than transformers' CLIPModel. "
                    "Plain vision and text transformers are read, no timm or Hugging Face towers inside OpenCLIP."
                )


def _without_weights(folder: Path) -> str:
    torches = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth"))
    if not torches:
        return f"{folder} holds no {WEIGHTS}. Fetch the model again."
    return (
        f"{folder} holds its weights as {torches[0]}, which can carry code; only safetensors are read. Make them with\n"
        f"  rebus import {folder / torches[0]} OUT\n"
        f"and move OUT/model.safetensors to {folder / WEIGHTS}."
    )


def _renamed(tensors: "dict[str, torch.Tensor]", folder: Path) -> "dict[str, torch.Tensor]":
    found: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        block = re.fullmatch(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+)", name)
        if block is not None:
            tower = "vision_model" if block[1] else "text_model"
            found |= _block(f"{tower}.encoder.layers.{block[2]}", block[3], tensor)
        elif name in PROJECTIONS:
            found[PROJECTIONS[name]] = tensor.t()
        elif name in WHOLE:
            found[WHOLE[name]] = tensor
        else:
            raise DataError(f"{folder / WEIGHTS}: no CLIPModel has a tensor '{name}'.")
    return found


def _block(prefix: str, name: str, tensor: "torch.Tensor") -> "dict[str, torch.Tensor]":
    if name in ("attn.in_proj_weight", "attn.in_proj_bias"):
        kind = name.rpartition("_")[2]
        parts = zip("qkv", tensor.chunk(3), strict=True)
        return {f"{prefix}.self_attn.{part}_proj.{kind}": values for part, values in parts}
    part, _, kind = name.rpartition(".")
    return {f"{prefix}.{BLOCK.get(part, part)}.{kind}": tensor}
