"""LLaVA-NeXT's tiles: which canvas, which tokens of it are picture and not margin, and the tiles themselves.

Geometry by the original code (LLaVA, mm_utils.py and llava_arch.py), where a canvas is (width, height).
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from rebus.pictures.config import AnyresConfig

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image

SHRINK_BEYOND = 1.1
"""anyres_max_N shrinks a grid only where it is more than this factor too long on a side."""


@dataclass(frozen=True)
class Tiling:
    """How one picture of known size is laid out. All in tokens but columns and rows, which count tiles.

    top, left, height, width: what of the canvas' grid of tokens is picture (`spatial_unpad`) or everything.
    shrunk: (height, width) that max_tiles brings it to; None where it fits.
    """

    columns: int
    rows: int
    top: int
    left: int
    height: int
    width: int
    shrunk: tuple[int, int] | None = None

    @property
    def num_crops(self) -> int:
        """Tiles, and the squashed picture before them."""
        return 1 + self.columns * self.rows


def best_canvas(width: int, height: int, canvases: tuple[tuple[int, int], ...]) -> tuple[int, int]:
    """The canvas that keeps most pixels of the picture, then wastes fewest, then stands first."""

    def fit(canvas: tuple[int, int]) -> tuple[int, int]:
        scale = min(canvas[0] / width, canvas[1] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - canvas[0] * canvas[1]

    return max(canvases, key=fit)


@lru_cache(maxsize=65536)
def tile(width: int, height: int, config: AnyresConfig) -> Tiling:
    """The layout of a picture of this size in pixels. Raises: ValueError where the size is not known."""
    if width < 1 or height < 1:
        raise ValueError(f"a picture of {width} x {height} pixels has no tiles; its size must be known")
    canvas_width, canvas_height = best_canvas(width, height, config.canvases)
    columns, rows = canvas_width // config.size, canvas_height // config.size
    across, down = columns * config.tokens_per_side, rows * config.tokens_per_side
    if config.merge != "spatial_unpad":
        return Tiling(columns, rows, 0, 0, down, across)
    top = left = 0
    if width / height > across / down:
        top = (down - int(round(height * (across / width), 7))) // 2
    else:
        left = (across - int(round(width * (down / height), 7))) // 2
    kept_height, kept_width = down - 2 * top, across - 2 * left
    return Tiling(columns, rows, top, left, kept_height, kept_width, _shrunk(kept_height, kept_width, config))


def _shrunk(height: int, width: int, config: AnyresConfig) -> tuple[int, int] | None:
    if config.max_tiles is None:
        return None
    times = math.sqrt(height * width / (config.max_tiles * config.tokens_per_side**2))
    return (int(height // times), int(width // times)) if times > SHRINK_BEYOND else None


def num_tokens(width: int, height: int, config: AnyresConfig) -> int:
    """Positions of a picture of this size in pixels: the squashed one's, the tiles', and a newline a row."""
    tiling = tile(width, height, config)
    rows, columns = tiling.shrunk or (tiling.height, tiling.width)
    newlines = rows if config.merge == "spatial_unpad" else 0
    return config.tokens_per_side**2 + rows * columns + newlines


def crops(picture: "PIL.Image.Image", config: AnyresConfig) -> "np.ndarray":
    """RGB picture -> uint8 [1 + tiles, size, size, 3]: squashed first, then the canvas' tiles row by row."""
    import numpy as np
    import PIL.Image

    tiling = tile(*picture.size, config)
    size, bicubic = config.size, PIL.Image.Resampling.BICUBIC
    width, height = picture.size
    canvas_width, canvas_height = tiling.columns * size, tiling.rows * size
    scale_width, scale_height = canvas_width / width, canvas_height / height
    if scale_width < scale_height:
        inner = canvas_width, min(math.ceil(height * scale_width), canvas_height)
    else:
        inner = min(math.ceil(width * scale_height), canvas_width), canvas_height
    canvas = np.zeros((canvas_height, canvas_width, 3), np.uint8)
    top, left = (canvas_height - inner[1]) // 2, (canvas_width - inner[0]) // 2
    canvas[top : top + inner[1], left : left + inner[0]] = np.asarray(picture.resize(inner, bicubic))
    tiles = canvas.reshape(tiling.rows, size, tiling.columns, size, 3).swapaxes(1, 2).reshape(-1, size, size, 3)
    return np.concatenate([np.asarray(picture.resize((size, size), bicubic))[None], tiles])
