"""A picture of any size -> one square, by one of four strategies."""

import math
from functools import lru_cache
from typing import TYPE_CHECKING

from rebus.pictures.config import Colour, FixedConfig
from rebus.pictures.decode import Box, Target, decode, decode_image

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image

MAX_STRETCH = 200
"""`crop` resizes no more than this many times the square of a long picture, which bounds its memory (size 336: 68 MB);
shards refuse what is longer. Up to there its pixels are CLIP's processor's to the bit."""


def square(data: bytes, config: FixedConfig) -> "np.ndarray":
    """Encoded image -> uint8 [size, size, 3]. Raises: ValueError as decode_image does."""
    if not config.reduced_jpeg:  # upright first: a resize works in rows, then in columns, and rounds between them
        return resize_image(decode_image(data), config)
    picture, box, turn = decode(data, Target(config.size, config.resize in ("letterbox", "pad")))
    return resize_image(picture, config, box, turn)


def resize_image(
    picture: "PIL.Image.Image",
    config: FixedConfig,
    box: Box | None = None,
    turn: "PIL.Image.Transpose | None" = None,
    resample: int | None = None,
) -> "np.ndarray":
    """RGB picture of any size -> uint8 [size, size, 3], resampled once.

    box: left, top, right, bottom of what counts of the picture; None: all of it. turn: what sets it upright, if it
    does not stand so. resample: Pillow's number of another filter than bicubic.
    """
    import numpy as np
    import PIL.Image

    if config.resize == "pad":
        picture, box = _padded(picture, box, config.mean)
    box = box or (0, 0, *picture.size)
    if config.resize == "crop":
        box = _shortened(box)
    kernel = PIL.Image.Resampling.BICUBIC if resample is None else PIL.Image.Resampling(resample)
    resized = picture.resize(_sides(box, config), kernel, box=box)
    if turn is not None:
        resized = resized.transpose(turn)
    if config.resize == "crop":
        left, top = (resized.width - config.size) // 2, (resized.height - config.size) // 2
        resized = resized.crop((left, top, left + config.size, top + config.size))
    pixels = np.asarray(resized)
    return pixels if resized.size == (config.size, config.size) else _on_mean(pixels, config)


def resize_by_torch(picture: "PIL.Image.Image", config: FixedConfig, resample: int) -> "np.ndarray":
    """As resize_image, `crop` and `squash` alone, by torch's kernels: three to four times as fast where the CPU has
    AVX2, and off by one level of 255 in 0.2 to 5% of the values. resample: Pillow's number of bilinear or bicubic."""
    import numpy as np
    import torch

    box = _shortened((0, 0, *picture.size)) if config.resize == "crop" else (0, 0, *picture.size)
    (width, height), (left, top, right, bottom) = _sides(box, config), (round(edge) for edge in box)
    pixels = torch.from_numpy(np.array(picture)[top:bottom, left:right]).permute(2, 0, 1)[None]  # [1, 3, H, W]
    mode = {2: "bilinear", 3: "bicubic"}[resample]
    resized = torch.nn.functional.interpolate(pixels, (height, width), mode=mode, antialias=True)[0]
    left, top = (width - config.size) // 2, (height - config.size) // 2
    return resized[:, top : top + config.size, left : left + config.size].permute(1, 2, 0).numpy()


def _sides(box: Box, config: FixedConfig) -> tuple[int, int]:
    """Width and height of the resized picture, before anything is cut off or laid around it."""
    width, height = box[2] - box[0], box[3] - box[1]
    if config.resize == "crop":  # as CLIP's processor: the shorter side exact, the longer truncated
        shorter = min(width, height)
        return int(config.size * width / shorter), int(config.size * height / shorter)
    if config.resize != "letterbox":
        return config.size, config.size
    longer = max(width, height)  # at least one pixel: a 1 x 1000 line must not vanish
    return max(1, math.floor(width * config.size / longer + 0.5)), max(
        1, math.floor(height * config.size / longer + 0.5)
    )


def _shortened(box: Box) -> Box:
    """The middle MAX_STRETCH squares of a long picture."""
    width, height = box[2] - box[0], box[3] - box[1]
    longest = MAX_STRETCH * min(width, height)
    across, down = max(0.0, width - longest) / 2, max(0.0, height - longest) / 2
    return (box[0] + across, box[1] + down, box[2] - across, box[3] - down) if across or down else box


def _padded(picture: "PIL.Image.Image", box: Box | None, mean: Colour) -> "tuple[PIL.Image.Image, Box]":
    """The picture in the middle of a square of the mean colour, whose values LLaVA cuts to whole ones, as it puts the
    picture a pixel up or left where the middle is none. A reduced picture's middle lies between pixels: the box of the
    square that is returned does so too."""
    import PIL.Image

    side, exact = max(picture.size), max(box[2], box[3]) if box else max(picture.size)
    room = [side + (box is not None and length < side) for length in picture.size]  # for where the middle truly is
    left, top = ((length - inner + 1 - (box is None)) // 2 for length, inner in zip(room, picture.size, strict=True))
    canvas = PIL.Image.new("RGB", (room[0], room[1]), (int(mean[0]), int(mean[1]), int(mean[2])))
    canvas.paste(picture, (left, top))
    across, down = (max(0, left - (exact - box[2]) / 2), max(0, top - (exact - box[3]) / 2)) if box else (0, 0)
    return canvas, (across, down, across + exact, down + exact)


def _on_mean(pixels: "np.ndarray", config: FixedConfig) -> "np.ndarray":
    """uint8 [h, w, 3] laid in the middle of [size, size, 3]."""
    height, width, _ = pixels.shape
    top, left = (config.size - height) // 2, (config.size - width) // 2
    canvas = _blank(config.size, config.mean).copy()
    canvas[top : top + height, left : left + width] = pixels
    return canvas


@lru_cache(maxsize=4)
def _blank(size: int, mean: Colour) -> "np.ndarray":
    import numpy as np

    return np.full((size, size, 3), [round(value) for value in mean], np.uint8)
