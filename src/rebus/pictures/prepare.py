"""The one way from a picture or video to what a tower reads, under any image rule, and its layout without decoding."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from rebus.pictures import anyres, native
from rebus.pictures.config import AnyresConfig, FixedConfig, ImageConfig, NativeConfig
from rebus.pictures.decode import decode_image
from rebus.pictures.fixed import square
from rebus.records import Image, Part, Text, Video, images_of

if TYPE_CHECKING:
    import numpy as np

Visual = Image | Video
Grid = tuple[int, int, int]
"""How the rows of pixels of one picture lie. Native: (time, height, width) in patches, a row each. Else: (crops,
height, width), a row a crop, and height and width of the picture itself in pixels."""


class Layout(NamedTuple):
    """num_tokens: positions of the sequence. num_patches: what the tower works through. seconds: of video in one step
    of the time axis, 0 where there is no time."""

    grid: Grid
    num_tokens: int
    num_patches: int
    seconds: float = 0.0


@dataclass(frozen=True)
class Prepared:
    """What fills one slot. rows: uint8 [R, *config.row_shape], not yet normalised, perhaps not contiguous."""

    rows: "np.ndarray"
    grid: Grid


def visuals_of(part: Part, config: ImageConfig) -> tuple[Visual, ...]:
    """What of a part takes a slot each: native resolution keeps a video whole, the others see its frames."""
    if isinstance(config, NativeConfig) and not isinstance(part, Text):
        return (part,)
    return images_of(part)


def layout(visual: Visual, config: ImageConfig) -> Layout:
    """Grid and counts of a picture whose size is known, without a look at its pixels.

    Raises: ValueError where the rule needs a size that is not known, or refuses it.
    """
    if isinstance(config, NativeConfig):
        grid = native.grid_of(visual, config)
        num_patches = grid[0] * grid[1] * grid[2]
        seconds = native.seconds_per_step(visual, config) if isinstance(visual, Video) else 0.0
        return Layout(grid, num_patches // config.merge_size**2, num_patches, seconds)
    picture = _picture(visual)
    num_patches = (config.size // config.patch_size) ** 2
    if isinstance(config, AnyresConfig):
        num_crops = anyres.tile(picture.width, picture.height, config).num_crops
        num_tokens = anyres.num_tokens(picture.width, picture.height, config)
        return Layout((num_crops, picture.height, picture.width), num_tokens, num_crops * num_patches)
    return Layout((1, picture.height, picture.width), config.tokens_per_side**2, num_patches)


def prepare(visual: Visual, config: ImageConfig) -> Prepared:
    """Decodes, resizes, cuts. Raises: ValueError where the bytes are no whole picture, or none are there."""
    if isinstance(config, NativeConfig):
        height, width = native.resized(visual, config)
        frames = visual.frames if isinstance(visual, Video) else (visual,)
        pixels = native.resize_frames([decode_image(_data(frame)) for frame in frames], height, width)
        return Prepared(native.patchify(pixels, config), native.grid_of(visual, config))
    picture = _picture(visual)
    if isinstance(config, AnyresConfig):
        decoded = decode_image(_data(picture))
        rows = anyres.crops(decoded, config)
        return Prepared(rows.transpose(0, 3, 1, 2), (len(rows), decoded.height, decoded.width))
    rows = square(_data(picture), config)[None]
    return Prepared(rows.transpose(0, 3, 1, 2), (1, picture.height, picture.width))


def prepare_image(data: bytes, config: FixedConfig) -> "np.ndarray":
    """Encoded image -> float32 [3, size, size], normalised, by the rule of one square. Raises: ValueError."""
    return normalise(square(data, config).transpose(2, 0, 1)[None], config)[0]


def normalise(rows: "np.ndarray", config: ImageConfig) -> "np.ndarray":
    """uint8 [R, *row_shape] -> float32, (x - mean) / std. Batches do the same on their device."""
    import numpy as np

    mean, std = (np.array(values, np.float32)[:, None] for values in (config.mean, config.std))
    planes = np.ascontiguousarray(rows).reshape(len(rows), 3, math.prod(config.row_shape) // 3).astype(np.float32)
    return ((planes - mean) / std).reshape(len(rows), *config.row_shape)


def _picture(visual: Visual) -> Image:
    if isinstance(visual, Video):
        raise ValueError("this image rule has no place for a whole video; its frames are pictures")
    return visual


def _data(image: Image) -> bytes:
    if image.data is None:
        raise ValueError("the picture has a size but no data")
    return image.data
