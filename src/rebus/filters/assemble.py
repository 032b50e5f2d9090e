"""The dual encoder that training starts from: two towers with fresh heads, or a whole one."""

import shutil
from pathlib import Path
from typing import Any

from rebus.errors import ConfigError
from rebus.filters.config import FilterRecipe, TextConfig, VisionConfig
from rebus.filters.lite0 import efficientnet
from rebus.filters.word_vectors import word_vectors
from rebus.fingerprint import file_fingerprint, write_atomically
from rebus.pictures.config import FixedConfig
from rebus.towers.config import single_file
from rebus.towers.dual import DualEncoder, dual_fingerprint, open_dual
from rebus.towers.dual_pictures import PictureRule
from rebus.towers.dual_texts import TextRule, open_tokenizer

BICUBIC = 3  # Pillow's number
PROCESSOR = "preprocessor_config.json"
TRAINABLE = ("CLIPModel", "SiglipModel", "VisionTextDualEncoderModel")


def assemble(recipe: FilterRecipe, device: str) -> DualEncoder:
    """The network before its first step, float32, in eval mode, nothing to be trained; fresh heads are seeded.

    Raises: ConfigError or DataError where weights are missing, or are of no architecture that can be trained.
    """
    import torch

    if recipe.start is not None:
        encoder = open_dual(recipe.start, "float32", device)
        kind = type(encoder.model).__name__
        if kind not in TRAINABLE or not (recipe.start / PROCESSOR).is_file():
            raise ConfigError(f"{recipe.start} holds a {kind}: {', '.join(TRAINABLE)} with {PROCESSOR} can be trained.")
        return encoder
    vision, text, image = recipe.towers_and_image()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model, tokenizer = _joined(recipe, vision, text, image)
    rule = PictureRule(image.model_copy(update={"reduced_jpeg": False}), image.size, BICUBIC)
    length = min(text.max_tokens, tokenizer.model_max_length)
    text_rule = TextRule(tokenizer, length, model_type=model.config.text_config.model_type)
    return DualEncoder(model.eval().requires_grad_(False).to(device), rule, text_rule)


def inputs(recipe: FilterRecipe) -> dict[str, str]:
    """Fingerprints of the weights that training starts from."""
    if recipe.start is not None:
        return {"start": dual_fingerprint(recipe.start)}
    vision, text, _ = recipe.towers_and_image()
    is_file = vision.kind == "efficientnet_lite0"
    place = _existing(single_file(vision.weights) if is_file else vision.weights)
    looks = file_fingerprint(place) if is_file else dual_fingerprint(place)
    return {"vision": looks, "text": dual_fingerprint(_existing(text.weights))}


def _joined(recipe: FilterRecipe, vision: VisionConfig, text: TextConfig, image: FixedConfig) -> tuple[Any, Any]:
    """(VisionTextDualEncoderModel, tokenizer). Its heads have no bias; those of a frozen tower need none."""
    import math

    import transformers

    transformers.utils.logging.disable_progress_bar()
    vision_model = _vision(vision, image)
    text_model, tokenizer = _text(text)
    config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(
        vision_model.config,
        text_model.config,
        projection_dim=recipe.heads.dim,
        logit_scale_init_value=math.log(recipe.logit_scale),
    )
    return transformers.VisionTextDualEncoderModel(config, vision_model, text_model), tokenizer


def _vision(config: VisionConfig, image: FixedConfig) -> Any:
    import safetensors.torch
    import transformers

    if config.kind == "efficientnet_lite0":
        if image.size % 32:
            raise ConfigError(f"image.size {image.size} is no multiple of 32, the stride of efficientnet_lite0.")
        return efficientnet(safetensors.torch.load_file(_existing(single_file(config.weights))), image.size)
    folder = _existing(config.weights)
    model = transformers.AutoModel.from_pretrained(folder, use_safetensors=True, local_files_only=True).float()
    return getattr(model, "vision_model", model)


def _text(config: TextConfig) -> tuple[Any, Any]:
    import transformers

    folder = _existing(config.weights)
    if config.kind == "word_vectors":
        return word_vectors(folder, config.width, config.max_tokens)
    model = transformers.AutoModel.from_pretrained(folder, use_safetensors=True, local_files_only=True).float()
    if getattr(model, "pooler", None) is None:
        raise ConfigError(f"{folder}: {type(model).__name__} has no pooled output, as a text tower needs (BERT's).")
    tokenizer = open_tokenizer(folder)
    tokenizer.model_max_length = min(config.max_tokens, tokenizer.model_max_length)
    return model, tokenizer


def _existing(path: Path) -> Path:
    if not path.exists():
        raise ConfigError(f"no weights at {path}. `rebus import --help` shows how to make them.")
    return path


def save(encoder: DualEncoder, recipe: FilterRecipe, out: Path) -> None:
    """The hub folder: config, model.safetensors, tokenizer, image processor."""
    import json

    encoder.model.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)  # safetensors makes files that only their owner may read
    encoder.text_rule.tokenizer.backend_tokenizer.no_truncation()  # what scoring set; the length stands in its config
    encoder.text_rule.tokenizer.save_pretrained(out)
    if recipe.start is not None:
        shutil.copyfile(recipe.start / PROCESSOR, out / PROCESSOR)
    else:
        write_atomically(out / PROCESSOR, json.dumps(_processor(encoder.image_rule), indent=2) + "\n")


def _processor(rule: PictureRule) -> dict[str, Any]:
    """CLIP's image processor for `crop`, SigLIP's for `squash`: transformers reads both by their names."""
    fixed, side = rule.fixed, {"height": rule.side, "width": rule.side}
    is_crop = fixed.resize == "crop"
    return {
        "image_processor_type": "CLIPImageProcessor" if is_crop else "SiglipImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": fixed.size} if is_crop else side,
        "resample": rule.resample,
        **({"do_center_crop": True, "crop_size": side} if is_crop else {}),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [value / 255 for value in fixed.mean],
        "image_std": [value / 255 for value in fixed.std],
    }
