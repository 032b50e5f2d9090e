"""From encoded bytes to what a tower sees: one decode, one resize, one normalisation for every stage."""

import io
import math
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from rebus.config import Config
from rebus.fingerprint import fingerprint

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""What is decoded. Pillow knows more, some by starting other programs (EPS: Ghostscript): not for foreign data."""

MAX_PIXELS = 89_478_485
"""Pictures with more are refused before they are decoded: Pillow's own limit, 256 MiB as RGB."""

ResizeName = Literal["squash", "crop", "letterbox"]


class ImageConfig(Config):
    """One resize and one token rule for every stage.

    size: side of the square that the tower sees, in pixels. mean, std: of RGB in 0..255; the tower sees
    (x - mean) / std, and 127 and 128 are EfficientNet-Lite's. tokens_per_side: an image takes tokens_per_side**2
    positions of the sequence. patch_size: side of the squares that the tower's work is counted in, in pixels.
    """

    size: int = Field(default=224, ge=1)
    resize: ResizeName = "letterbox"
    mean: tuple[float, float, float] = (127.0, 127.0, 127.0)
    std: tuple[float, float, float] = (128.0, 128.0, 128.0)
    tokens_per_side: int = Field(default=7, ge=1)
    patch_size: int = Field(default=32, ge=1)

    @property
    def fingerprint(self) -> str:
        """Of what shapes the pixels; how many tokens or patches they become does not."""
        return fingerprint(self.model_dump(mode="json", exclude={"tokens_per_side", "patch_size"}))


def decode_image(data: bytes) -> "PIL.Image.Image":
    """Decodes image bytes to RGB; transparency is laid on white, the first frame of an animation stands for it.

    Raises: ValueError with the reason where the bytes are no complete picture or a decompression bomb.
    """
    import PIL.Image

    try:
        picture: PIL.Image.Image = PIL.Image.open(io.BytesIO(data), formats=FORMATS)
        if picture.width * picture.height > MAX_PIXELS:
            raise ValueError(f"{picture.width} x {picture.height} pixels, over the limit of {MAX_PIXELS:,}")
        picture.load()
    except (OSError, SyntaxError, PIL.Image.DecompressionBombWarning, PIL.Image.DecompressionBombError) as error:
        raise ValueError(f"not a readable picture: {error}") from error
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        canvas = PIL.Image.new("RGBA", picture.size, "white")
        canvas.alpha_composite(picture)
        picture = canvas
    return picture.convert("RGB")


def prepare_image(data: bytes, config: ImageConfig) -> "np.ndarray":
    """Encoded image -> float32 [3, size, size], normalised as (x - mean) / std with x in 0..255.

    Raises: ValueError where the bytes are no complete picture (see decode_image).
    """
    return normalise(resize_image(decode_image(data), config), config)


def resize_image(picture: "PIL.Image.Image", config: ImageConfig) -> "PIL.Image.Image":
    """RGB picture of any size -> size x size, bicubic, resampled once.

    squash: the sides are stretched. crop: the centre square. letterbox: the whole picture on the mean colour.
    """
    import PIL.Image

    side = (config.size, config.size)
    match config.resize:
        case "squash":
            return picture.resize(side, PIL.Image.Resampling.BICUBIC)
        case "crop":
            return picture.resize(side, PIL.Image.Resampling.BICUBIC, box=_centre_square(*picture.size))
        case "letterbox":
            return _letterbox(picture, config)


def normalise(picture: "PIL.Image.Image", config: ImageConfig) -> "np.ndarray":
    """RGB picture -> float32 [3, H, W]."""
    import numpy as np

    mean, std = np.array(config.mean, np.float32), np.array(config.std, np.float32)
    pixels = (np.asarray(picture, np.float32) - mean) / std  # [H, W, 3]
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _centre_square(width: int, height: int) -> tuple[float, float, float, float]:
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def _letterbox(picture: "PIL.Image.Image", config: ImageConfig) -> "PIL.Image.Image":
    import PIL.Image

    scale = config.size / max(picture.size)
    # At least one pixel: a 1 x 1000 line must not vanish.
    width, height = (max(1, math.floor(side * scale + 0.5)) for side in picture.size)
    canvas = PIL.Image.new("RGB", (config.size, config.size), tuple(round(value) for value in config.mean))
    resized = picture.resize((width, height), PIL.Image.Resampling.BICUBIC)
    canvas.paste(resized, ((config.size - width) // 2, (config.size - height) // 2))
    return canvas
