"""Qwen2-VL and Qwen2.5-VL as the hub has them: flat config, `visual.*` beside the language model's plain names. Read
also as transformers 5 writes them: nested config, `model.visual.*` and `model.language_model.*` in memory."""

import re
from pathlib import Path
from typing import Any

import torch

from rebus.checkpoints.layouts.folder import (
    has_chat_template,
    image_settings,
    model_type,
    read_json,
    to_bytes,
    to_unit,
    token_settings,
    video_settings,
    write_json,
)
from rebus.checkpoints.layouts.settings import (
    Composition,
    hub_config,
    is_tied,
    language_refusal,
    plain,
    text_of,
    vision_of,
)
from rebus.checkpoints.layouts.tokenizer import num_rows, token_id
from rebus.errors import DataError
from rebus.model.config import ModelConfig
from rebus.model.families import VisionLanguageModel
from rebus.pictures.config import CLIP_MEAN, CLIP_STD, NativeConfig
from rebus.towers.config import TowerConfig

SPECIAL_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
CLASSES = {"qwen2_vl": "Qwen2VLForConditionalGeneration", "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration"}
PATCHES = "patch_embed.proj.weight"
FRAMES = 2
"""Frames that one patch spans, in every checkpoint there is."""
PLACEHOLDERS = {kind: f"<|vision_start|><|{kind}_pad|><|vision_end|>" for kind in ("image", "video")}
SYSTEM = "You are a helpful assistant."
"""What Qwen's own template says where nobody else does."""


def recognises(folder: Path) -> bool:
    return model_type(folder) in CLASSES


def read(folder: Path, *, template: str | None = None) -> Composition:
    """template: how turns are written; None: the folder's own chat template, if it has one.

    Raises: DataError where the config asks for what Rebus does not compute."""
    settings = hub_config(folder, "vision_config")
    kind = settings.model_type
    text, section = _text(settings, folder)
    vision = settings.vision_config.to_dict()
    tower = TowerConfig(kind=kind, weights=folder)
    merger = "qwen2_merger" if kind == "qwen2_vl" else "qwen2_5_merger"
    model = ModelConfig(tower=tower, connector=merger, language=folder, mrope_section=section)
    image = _image(folder, vision)
    tokens = {
        **({} if template or has_chat_template(folder) else {"template": "chatml", "system": SYSTEM}),
        **token_settings(folder, text, template),
        "image": image.model_dump(mode="json"),
        "image_start": SPECIAL_TOKENS[0],
        "image_end": SPECIAL_TOKENS[1],
    }
    return Composition(model, image, vision, text, tokens)


def _text(settings: Any, folder: Path) -> tuple[dict[str, Any], tuple[int, int, int]]:
    """The language model as a plain qwen2 config, and the frequencies of each axis."""
    text = {**plain(settings.text_config.to_dict()), "model_type": "qwen2"}
    rope = dict(text["rope_parameters"])
    section = rope.pop("mrope_section", None)
    if section is None:
        raise DataError(f"{folder / 'config.json'} names no mrope_section. Fetch it again.")
    rope.pop("type", None)
    text["rope_parameters"] = rope
    text["tie_word_embeddings"] = settings.tie_word_embeddings
    return text, tuple(section)


def _image(folder: Path, vision: dict[str, Any]) -> NativeConfig:
    """What the files leave open is as in transformers' class: 4 to 1280 tokens a picture."""
    images, videos = image_settings(folder), video_settings(folder)
    size = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280, **(images.get("size") or {})}
    frame = {"shortest_edge": 128 * 28 * 28, "longest_edge": 768 * 28 * 28, **(videos.get("size") or {})}
    return NativeConfig(
        kind="native",
        min_pixels=images.get("min_pixels") or size.get("min_pixels") or size["shortest_edge"],
        max_pixels=images.get("max_pixels") or size.get("max_pixels") or size["longest_edge"],
        video_min_pixels=videos.get("min_pixels") or frame["shortest_edge"],
        video_max_pixels=videos.get("max_pixels") or frame["longest_edge"],
        mean=to_bytes(images["image_mean"]) if "image_mean" in images else CLIP_MEAN,
        std=to_bytes(images["image_std"]) if "image_std" in images else CLIP_STD,
        patch_size=vision["patch_size"],
        merge_size=vision["spatial_merge_size"],
        temporal_patch_size=vision["temporal_patch_size"],
        tokens_per_second=vision.get("tokens_per_second", 0),
    )


def to_ours(name: str, tensor: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    for pattern, ours in (
        (r"^(model\.)?visual\.merger\.", "connector."),
        (r"^(model\.)?visual\.", "tower."),
        (r"^lm_head\.", "language.lm_head."),
        (r"^model\.(language_model\.)?", "language.model."),
    ):
        renamed, found = re.subn(pattern, ours, name)
        if found:
            return [(renamed, tensor.flatten(1) if renamed == f"tower.{PATCHES}" else tensor)]
    return [(name, tensor)]


def from_ours(name: str, tensor: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """The linear patch embedding [C, 3 * 2 * p * p] becomes a convolution [C, 3, 2, p, p] again."""
    if name == f"tower.{PATCHES}":
        side = round((tensor.shape[1] / (3 * FRAMES)) ** 0.5)
        tensor = tensor.reshape(-1, 3, FRAMES, side, side)
    for ours, theirs in (("connector.", "visual.merger."), ("tower.", "visual."), ("language.", "")):
        if name.startswith(ours):
            return [(theirs + name.removeprefix(ours), tensor)]
    return []


def refusal(model: VisionLanguageModel) -> str | None:
    config, image = model.config, model.image
    if config.tower.kind not in CLASSES or not isinstance(image, NativeConfig):
        return f"its tower is no native-resolution one of Qwen's but '{config.tower.kind}'"
    if config.connector != ("qwen2_merger" if config.tower.kind == "qwen2_vl" else "qwen2_5_merger"):
        return f"its connector is '{config.connector}', which does not belong to the tower '{config.tower.kind}'"
    if config.mrope_section is None or model.language.config.model_type != "qwen2":
        return f"its language model is a {model.language.config.model_type} without M-RoPE or no qwen2"
    if image.temporal_patch_size != FRAMES:
        return f"its patches span {image.temporal_patch_size} frames, Qwen's {FRAMES}"
    return language_refusal(model)


def write_configs(model: VisionLanguageModel, tokens: dict[str, Any], folder: Path) -> None:
    kind, image = model.config.tower.kind, model.image
    assert isinstance(image, NativeConfig)
    text = text_of(model, num_rows(model, folder))
    rope = text.pop("rope_scaling") or {}
    scaling = {**rope, "type": rope.get("type", "mrope"), "mrope_section": list(model.config.mrope_section or ())}
    body = {
        **text,
        "architectures": [CLASSES[kind]],
        "model_type": kind,
        "rope_scaling": {key: value for key, value in scaling.items() if key != "rope_type"},
        "tie_word_embeddings": is_tied(model),
        "vision_config": _vision(model),
        "vision_start_token_id": token_id(folder, "<|vision_start|>"),
        "vision_end_token_id": token_id(folder, "<|vision_end|>"),
        "image_token_id": token_id(folder, "<|image_pad|>"),
        "video_token_id": token_id(folder, "<|video_pad|>"),
    }
    write_json(folder / "config.json", body)
    _write_processor(image, folder, "Qwen2VLProcessor" if kind == "qwen2_vl" else "Qwen2_5_VLProcessor")


def _vision(model: VisionLanguageModel) -> dict[str, Any]:
    settings = plain(vision_of(model) or {})
    settings.pop("rope_parameters", None)
    return {**settings, "model_type": model.config.tower.kind, "in_chans": settings.get("in_channels", 3)}


def _write_processor(image: NativeConfig, folder: Path, processor: str) -> None:
    settings = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": processor,
        "min_pixels": image.min_pixels,
        "max_pixels": image.max_pixels,
        "size": {"shortest_edge": image.min_pixels, "longest_edge": image.max_pixels},
        "patch_size": image.patch_size,
        "merge_size": image.merge_size,
        "temporal_patch_size": image.temporal_patch_size,
        "image_mean": to_unit(image.mean),
        "image_std": to_unit(image.std),
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": True,
        "rescale_factor": 1 / 255,
        "resample": 3,
    }
    write_json(folder / "preprocessor_config.json", settings)
    write_json(folder / "processor_config.json", {"processor_class": processor})
    frame = {"shortest_edge": image.video_min_pixels, "longest_edge": image.video_max_pixels}
    body = {**settings, "video_processor_type": "Qwen2VLVideoProcessor", "size": frame}
    for name in ("image_processor_type", "min_pixels", "max_pixels"):
        body.pop(name)
    write_json(folder / "video_preprocessor_config.json", body)
    tokenizer = read_json(folder / "tokenizer_config.json")
    write_json(folder / "tokenizer_config.json", {**tokenizer, "processor_class": processor})
