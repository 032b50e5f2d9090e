"""LLaVA as transformers lays it out (LlavaForConditionalGeneration): one square a picture, CLIP or SigLIP. An
Open-Qwen2VL that takes all 729 features leaves as one."""

from pathlib import Path
from typing import Any

from rebus.checkpoints.layouts import llava_family
from rebus.checkpoints.layouts.folder import image_settings, model_type, read_json, to_bytes, to_unit, token_settings
from rebus.checkpoints.layouts.settings import Composition
from rebus.errors import DataError
from rebus.model.families import VisionLanguageModel
from rebus.pictures.config import CLIP_MEAN, CLIP_STD, FixedConfig, ResizeName

SPECIAL_TOKENS = (llava_family.IMAGE_TOKEN,)
PLACEHOLDERS = llava_family.PLACEHOLDERS
HALF = (127.5, 127.5, 127.5)
to_ours, from_ours, unheld = llava_family.to_ours, llava_family.from_ours, llava_family.unheld


def recognises(folder: Path) -> bool:
    return model_type(folder) == "llava" and "vision_config" in read_json(folder / "config.json")


def read(folder: Path, *, template: str | None = None) -> Composition:
    """template: how turns are written; None: the folder's own chat template, if it has one.

    Raises: DataError where the config asks for what Rebus does not compute."""
    _, model, vision, text = llava_family.read_parts(folder)
    image = _image(folder, vision)
    tokens = {**token_settings(folder, text, template), "image": image.model_dump(mode="json")}
    return Composition(model, image, vision, text, tokens)


def _image(folder: Path, vision: dict[str, Any]) -> FixedConfig:
    """Without a file the rule is the one of the tower's own processor: CLIP's crops, SigLIP's squashes."""
    images, is_clip = image_settings(folder), vision["model_type"] == "clip_vision_model"
    mean, std = (CLIP_MEAN, CLIP_STD) if is_clip else (HALF, HALF)
    return FixedConfig(
        size=_size(images, vision["image_size"], folder),
        resize=_resize(images, is_clip),
        mean=to_bytes(images["image_mean"]) if "image_mean" in images else mean,
        std=to_bytes(images["image_std"]) if "image_std" in images else std,
        tokens_per_side=vision["image_size"] // vision["patch_size"],
        patch_size=vision["patch_size"],
        reduced_jpeg=False,
    )


def _resize(images: dict[str, Any], is_clip: bool) -> ResizeName:
    if images.get("do_pad"):
        return "pad"
    crops = "shortest_edge" in (images.get("size") or {}) or (not images and is_clip)
    return "crop" if crops and images.get("do_center_crop", True) else "squash"


def _size(images: dict[str, Any], side: int, folder: Path) -> int:
    found = images.get("crop_size") or images.get("size") or {}
    sides = {found} if isinstance(found, int) else set(found.values())
    if sides - {side}:
        raise DataError(f"{folder}: pictures are prepared {sorted(sides)} pixels a side, the tower sees {side}.")
    return side


def refusal(model: VisionLanguageModel) -> str | None:
    image = model.image
    if not isinstance(image, FixedConfig):
        return f"its pictures are of kind '{image.kind}', not fixed squares"
    if image.resize == "letterbox":
        return "its pictures are letterboxed, which no image processor of transformers does ('pad' differs by rounding)"
    return llava_family.refusal_of(model, image)


def write_configs(model: VisionLanguageModel, tokens: dict[str, Any], folder: Path) -> None:
    image = model.image
    assert isinstance(image, FixedConfig)
    own = {"architectures": ["LlavaForConditionalGeneration"], "model_type": "llava"}
    llava_family.write_config(model, folder, own)
    square = {"height": image.size, "width": image.size}
    crop = {"size": {"shortest_edge": image.size}, "crop_size": square, "do_center_crop": True}
    ways: dict[str, dict[str, Any]] = {
        "squash": {"image_processor_type": "SiglipImageProcessor", "size": square},
        "crop": {"image_processor_type": "CLIPImageProcessor", **crop},
        "pad": {"image_processor_type": "LlavaImageProcessor", **crop, "do_pad": True},
    }
    colours = {"image_mean": to_unit(image.mean), "image_std": to_unit(image.std)}
    images = {**ways[image.resize], **colours}
    llava_family.write_processor(model, folder, "LlavaProcessor", images)
