"""How a dual encoder wants its pictures: what a hub folder's image processor does, by the one resize that Rebus has."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rebus.errors import ConfigError, DataError
from rebus.pictures.config import CLIP_MEAN, CLIP_STD, Colour, FixedConfig
from rebus.pictures.fixed import resize_by_torch, resize_image

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image

PLAIN = ("CLIP", "Siglip", "ViT", "ChineseCLIP", "DeiT", "Bit", "EfficientNet")
"""Processors of transformers that resize, cut out the middle, rescale and normalise, and do nothing else."""

FILTERS = {"nearest": 0, "bilinear": 2, "bicubic": 3}
"""OpenCLIP's words -> Pillow's numbers, which transformers writes."""


@dataclass(frozen=True)
class PictureRule:
    """fixed: the resize (`crop` by the shorter side, or `squash`), mean and std in 0..255. side: of the square, in
    pixels, that is cut from the middle of that. resample: Pillow's number of the filter. by_torch: torch resizes."""

    fixed: FixedConfig
    side: int
    resample: int
    by_torch: bool = False

    def square(self, picture: "PIL.Image.Image") -> "np.ndarray":
        """RGB picture -> uint8 [side, side, 3], to the bit what transformers' Pillow processors make of it (but for
        a shift by one pixel where fixed.size - side is odd, as no published model has it). by_torch: what torch's
        uint8 kernels make of it, as transformers' torchvision processors use them: within one level of 255 of that."""
        resize = resize_by_torch if self.by_torch else resize_image
        pixels = resize(picture, self.fixed, resample=self.resample)
        start = (self.fixed.size - self.side) // 2
        return pixels[start : start + self.side, start : start + self.side]


def rule_of_processor(folder: Path) -> PictureRule:
    """From preprocessor_config.json, or processor_config.json, of a hub folder.

    Raises: DataError where there is none; ConfigError where the processor does what no rule here says.
    """
    import transformers

    settings = _settings(folder)
    kind = str(settings.get("image_processor_type") or settings.get("feature_extractor_type") or "")
    name = re.sub(r"(ImageProcessor(Fast|Pil)?|FeatureExtractor)$", "", kind)
    if name not in PLAIN:
        raise ConfigError(f"{folder}: image processor '{kind}' is not known; known are those of {', '.join(PLAIN)}.")
    processor = getattr(transformers, f"{name}ImageProcessorPil").from_dict(
        settings
    )  # knows defaults and old spellings
    if not processor.do_resize:
        raise ConfigError(f"{folder}: its image processor resizes nothing, so pictures would not fit into one batch.")
    size, side = _sides(processor, folder)
    mean, std = _colours(processor)
    resize: Any = "crop" if processor.size.shortest_edge else "squash"
    fixed = FixedConfig(size=size, resize=resize, mean=mean, std=std, reduced_jpeg=False)
    return PictureRule(fixed, side, int(processor.resample))


def _settings(folder: Path) -> dict[str, Any]:
    for name, part in (("preprocessor_config.json", None), ("processor_config.json", "image_processor")):
        if (folder / name).is_file():
            body = json.loads((folder / name).read_text(encoding="utf-8"))
            if part is None or part in body:
                return body if part is None else body[part]
    raise DataError(f"{folder} has no preprocessor_config.json: nobody knows how the model wants its pictures.")


def _sides(processor: Any, folder: Path) -> tuple[int, int]:
    """What the resize brings the (shorter) side to, and the side of what is cut out of it."""
    size, crop = processor.size, processor.crop_size if processor.do_center_crop else None
    resized = {size.shortest_edge} if size.shortest_edge else {size.height, size.width}
    cut = {crop.height, crop.width} if crop is not None else resized
    is_square = len(resized) == 1 and len(cut) == 1 and None not in resized | cut
    if not is_square or (size.shortest_edge and crop is None) or max(cut) > max(resized):
        raise ConfigError(f"{folder}: its image processor makes no square: size {size}, crop {crop}.")
    return int(max(resized)), int(max(cut))


def _colours(processor: Any) -> tuple[Colour, Colour]:
    """Mean and std of RGB in 0..255: (x * factor - offset - mean) / std, once or (EfficientNet) twice by std."""
    factor = processor.rescale_factor if processor.do_rescale else 1.0
    offset = 1.0 if getattr(processor, "rescale_offset", False) else 0.0
    means = processor.image_mean if processor.do_normalize else (0.0, 0.0, 0.0)
    stds = processor.image_std if processor.do_normalize else (1.0, 1.0, 1.0)
    again = processor.image_std if getattr(processor, "include_top", False) else (1.0, 1.0, 1.0)
    mean = tuple((value + offset) / factor for value in means)
    std = tuple(value * twice / factor for value, twice in zip(stds, again, strict=True))
    return mean, std  # type: ignore[return-value]


def rule_of_open_clip(side: int, settings: dict[str, Any], folder: Path) -> PictureRule:
    """side: in pixels; settings: `preprocess_cfg` of open_clip_config.json. Where the margin that is cut off is odd,
    OpenCLIP's cut may lie one pixel further. Raises: ConfigError for a resize that is not known."""
    mode, word = settings.get("resize_mode") or "shortest", settings.get("interpolation") or "bicubic"
    if mode not in ("shortest", "squash") or word not in FILTERS:
        raise ConfigError(
            f"{folder}: resize_mode '{mode}' with '{word}' is not known: shortest or squash, {[*FILTERS]}."
        )
    mean = _times_255(settings.get("mean")) or CLIP_MEAN
    std = _times_255(settings.get("std")) or CLIP_STD
    resize: Any = "crop" if mode == "shortest" else "squash"
    fixed = FixedConfig(size=side, resize=resize, mean=mean, std=std, reduced_jpeg=False)
    return PictureRule(fixed, side, FILTERS[word])


def _times_255(values: list[float] | None) -> Colour | None:
    return tuple(value * 255 for value in values) if values else None  # type: ignore[return-value]
