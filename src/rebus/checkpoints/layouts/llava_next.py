"""LLaVA-NeXT as transformers lays it out (LlavaNextForConditionalGeneration, llava-hf on the hub)."""

from pathlib import Path
from typing import Any

from rebus.checkpoints.layouts import llava_family
from rebus.checkpoints.layouts.folder import image_settings, model_type, to_bytes, to_unit, token_settings
from rebus.checkpoints.layouts.settings import Composition
from rebus.model.families import VisionLanguageModel
from rebus.pictures.config import CLIP_MEAN, CLIP_STD, AnyresConfig

SPECIAL_TOKENS = (llava_family.IMAGE_TOKEN,)
PLACEHOLDERS = llava_family.PLACEHOLDERS
to_ours, from_ours, unheld = llava_family.to_ours, llava_family.from_ours, llava_family.unheld


def recognises(folder: Path) -> bool:
    return model_type(folder) == "llava_next"


def read(folder: Path, *, template: str | None = None) -> Composition:
    """template: how turns are written; None: the folder's own chat template, if it has one.

    Raises: DataError where the config asks for what Rebus does not compute."""
    settings, model, vision, text = llava_family.read_parts(folder)
    images = image_settings(folder)
    image = AnyresConfig(
        kind="anyres",
        size=vision["image_size"],
        pinpoints=tuple((width, height) for height, width in settings.image_grid_pinpoints),  # theirs are [h, w]
        mean=to_bytes(images["image_mean"]) if "image_mean" in images else CLIP_MEAN,
        std=to_bytes(images["image_std"]) if "image_std" in images else CLIP_STD,
        tokens_per_side=vision["image_size"] // vision["patch_size"],
        patch_size=vision["patch_size"],
    )
    tokens = {**token_settings(folder, text, template), "image": image.model_dump(mode="json")}
    return Composition(model, image, vision, text, tokens)


def refusal(model: VisionLanguageModel) -> str | None:
    image = model.image
    if not isinstance(image, AnyresConfig):
        return f"its pictures are of kind '{image.kind}', not anyres"
    if image.merge != "spatial_unpad":
        return f"it merges tiles by '{image.merge}'; LLaVA-NeXT in transformers knows 'spatial_unpad' alone"
    if image.max_tiles is not None:
        return f"it shrinks grids above {image.max_tiles} tiles (max_tiles), which LLaVA-NeXT in transformers does not"
    return llava_family.refusal_of(model, image)


def write_configs(model: VisionLanguageModel, tokens: dict[str, Any], folder: Path) -> None:
    image = model.image
    assert isinstance(image, AnyresConfig)
    pinpoints = [[height, width] for width, height in image.canvases]
    own = {
        "architectures": ["LlavaNextForConditionalGeneration"],
        "model_type": "llava_next",
        "image_grid_pinpoints": pinpoints,
        "use_image_newline_parameter": True,
    }
    llava_family.write_config(model, folder, own)
    images = {
        "image_processor_type": "LlavaNextImageProcessor",
        "size": {"shortest_edge": image.size},
        "crop_size": {"height": image.size, "width": image.size},
        "do_center_crop": True,
        "do_pad": True,
        "image_grid_pinpoints": pinpoints,
        "image_mean": to_unit(image.mean),
        "image_std": to_unit(image.std),
    }
    llava_family.write_processor(model, folder, "LlavaNextProcessor", images)
