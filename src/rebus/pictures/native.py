"""Native resolution (Qwen2-VL): pictures and videos in their own shape, cut into patches whose order puts the patches
of one token side by side."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rebus.pictures.config import NativeConfig
from rebus.records import Image, Video

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image

MAX_RATIO = 200
"""Pictures longer than this many times their width are refused, as by Qwen2-VL's processor."""

VIDEO_FLOOR = 1.05
"""A frame may always have this many times its least pixels, however many frames share the total (qwen-vl-utils)."""


LIMITS = ("min_pixels", "max_pixels", "total_pixels", "resized_height", "resized_width")
"""What a picture or video may ask of the resize, as qwen-vl-utils names it."""

Limits = tuple[tuple[str, int], ...]
"""Some of LIMITS, name and value, as `records.Image.limits` holds them."""


def limits_of(options: Mapping[str, Any]) -> Limits:
    """The LIMITS among some options. Raises: ValueError for a value that is no size."""
    found = [(name, options[name]) for name in LIMITS if options.get(name) is not None]
    for name, value in found:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value < 2**62 or value % 1:
            raise ValueError(f"{name} = {value!r}; a whole number of pixels is wanted")
    return tuple((name, int(value)) for name, value in found)


def fit(height: int, width: int, factor: int, min_pixels: float, max_pixels: float) -> tuple[int, int]:
    """(height, width) in whole multiples of `factor`, between the limits, near the picture's shape (`smart_resize`).

    Clamped to one factor on both branches: qwen-vl-utils can return 0 where it shrinks, transformers rounds thin
    pictures to 0 before it enlarges. Raises: ValueError for a ratio above 200 or an unknown size.
    """
    if min(height, width) < 1 or max(height, width) > MAX_RATIO * min(height, width):
        raise ValueError(f"{width} x {height} pixels: the sides' ratio must be known and at most {MAX_RATIO}")
    rounded = max(factor, round(height / factor) * factor), max(factor, round(width / factor) * factor)
    if rounded[0] * rounded[1] > max_pixels:
        beta = math.sqrt(height * width / max_pixels)
        return max(factor, int(height / beta / factor) * factor), max(factor, int(width / beta / factor) * factor)
    if rounded[0] * rounded[1] < min_pixels:
        beta = math.sqrt(min_pixels / (height * width))
        return math.ceil(height * beta / factor) * factor, math.ceil(width * beta / factor) * factor
    return rounded


def resized(visual: Image | Video, config: NativeConfig) -> tuple[int, int]:
    """(height, width) in pixels that a picture, or each frame of a video, is resized to.

    Its own `resized_height` and `resized_width` stand for its size, within the rule's limits of a picture; else its own
    `min_pixels` and `max_pixels` go before the rule's. Raises: ValueError as `fit` does, for limits that contradict
    each other and for a video of no frames.
    """
    if isinstance(visual, Video) and not visual.frames:
        raise ValueError("a video of no frames")
    picture = visual.frames[0] if isinstance(visual, Video) else visual
    limits = dict(picture.limits)
    if "resized_height" in limits and "resized_width" in limits:
        sides = limits["resized_height"], limits["resized_width"]
        return fit(*sides, config.factor, config.min_pixels, config.max_pixels)
    if isinstance(visual, Video):
        least, most = _frame_limits(limits, len(visual.frames), config)
    else:
        least, most = _own_limits(limits, config.min_pixels, config.max_pixels)
    return fit(picture.height, picture.width, config.factor, least, most)


def _own_limits(limits: Mapping[str, float], least: float, most: float) -> tuple[float, float]:
    """The limits that hold: where one is a picture's own and passes the rule's other one, that one gives way."""
    own_least, own_most = limits.get("min_pixels"), limits.get("max_pixels")
    if own_least is not None and own_most is not None and own_least > own_most:
        raise ValueError(f"min_pixels {own_least} is above max_pixels {own_most}")
    least = own_least if own_least is not None else least if own_most is None else min(least, own_most)
    most = own_most if own_most is not None else max(most, least)
    return least, most


def _frame_limits(limits: Mapping[str, int], num_frames: int, config: NativeConfig) -> tuple[float, float]:
    """Of each frame: its share of the total is counted in the groups of frames that become one."""
    floor = limits.get("min_pixels", config.video_min_pixels)
    groups = -(-num_frames // config.temporal_patch_size)
    share = limits.get("total_pixels", config.video_total_pixels) / groups
    ceiling = max(min(config.video_max_pixels, share), int(floor * VIDEO_FLOOR))
    least, most = _own_limits(limits, config.video_min_pixels, ceiling)
    return least, min(most, ceiling)


def grid_of(visual: Image | Video, config: NativeConfig) -> tuple[int, int, int]:
    """(time, height, width) in patches."""
    height, width = resized(visual, config)
    num_frames = len(visual.frames) if isinstance(visual, Video) else 1
    return -(-num_frames // config.temporal_patch_size), height // config.patch_size, width // config.patch_size


def seconds_per_step(video: Video, config: NativeConfig) -> float:
    """Seconds of video that one step of the time axis stands for: by the rate at which frames were taken, as Qwen2.5-VL
    counts it, or where nobody knows that by their times."""
    if video.fps:
        return round(config.temporal_patch_size / video.fps, 6)
    if len(video.seconds) < 2:
        return 0.0
    span = (video.seconds[-1] - video.seconds[0]) / (len(video.seconds) - 1)
    return round(span * config.temporal_patch_size, 6)


def patchify(frames: "np.ndarray", config: NativeConfig) -> "np.ndarray":
    """uint8 [frames, H, W, 3] -> [patches, 3 * temporal * patch * patch], values (channel, frame, row, column).

    A last group that is not full repeats its last frame. Rows run over time, then over squares of merge_size x
    merge_size patches, row by row, then inside the square.
    """
    import numpy as np

    patch, merge, temporal = config.patch_size, config.merge_size, config.temporal_patch_size
    missing = -len(frames) % temporal
    if missing:
        frames = np.concatenate([frames, np.repeat(frames[-1:], missing, axis=0)])
    num_frames, height, width, _ = frames.shape
    steps, down, across = num_frames // temporal, height // patch // merge, width // patch // merge
    cut = frames.reshape(steps, temporal, down, merge, patch, across, merge, patch, 3)
    return cut.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(-1, *config.row_shape)


def resize_frames(pictures: "Sequence[PIL.Image.Image]", height: int, width: int) -> "np.ndarray":
    """RGB pictures -> uint8 [frames, height, width, 3], bicubic."""
    import numpy as np

    return np.stack([np.asarray(resize(picture, height, width)) for picture in pictures])


def resize(picture: "PIL.Image.Image", height: int, width: int) -> "PIL.Image.Image":
    import PIL.Image

    return picture.resize((width, height), PIL.Image.Resampling.BICUBIC)
