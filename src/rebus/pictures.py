"""From encoded bytes to what a tower sees: one decode, one resize, one normalisation for every stage."""

import io
import math
import struct
from functools import lru_cache
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

RULE = 2
"""Part of what shapes the pixels: count it up when the same bytes give others. 2: JPEG decoded at reduced scale, EXIF
orientation applied, 16 bits scaled to 8."""

DEEP = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
SCALES = (8, 4, 2)  # what libjpeg divides both sides by while it decodes, at almost no loss of what a resize keeps
ORIENTATION = 0x0112
TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
BROKEN = (OSError, SyntaxError, EOFError, struct.error, LookupError, TypeError, ArithmeticError)
"""What Pillow raises for bytes that are no whole picture; a decompression bomb comes as a subclass of Exception."""

ResizeName = Literal["squash", "crop", "letterbox"]
Box = tuple[float, float, float, float]


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
        shaping = self.model_dump(mode="json", exclude={"tokens_per_side", "patch_size"})
        return fingerprint({**shaping, "rule": RULE})


def decode_image(data: bytes) -> "PIL.Image.Image":
    """Decodes image bytes to RGB at full size, upright as EXIF says (sizes in an index are those before turning).

    Transparency is laid on white, the first frame of an animation stands for it, deeper colours are scaled to 8 bits.
    Raises: ValueError with the reason where the bytes are no complete picture or a decompression bomb.
    """
    picture, _, turn = _decode(data, None)
    return picture if turn is None else picture.transpose(turn)


def prepare_pixels(data: bytes, config: ImageConfig) -> "np.ndarray":
    """Encoded image -> uint8 [3, size, size], resized and not yet normalised; a view of rows of RGB, not contiguous.

    A JPEG is decoded at the smallest scale that the resize still shrinks. Raises: ValueError as decode_image does.
    """
    picture, box, turn = _decode(data, config)
    return resize_image(picture, config, box, turn).transpose(2, 0, 1)


def prepare_image(data: bytes, config: ImageConfig) -> "np.ndarray":
    """Encoded image -> float32 [3, size, size], normalised as (x - mean) / std with x in 0..255.

    Raises: ValueError where the bytes are no complete picture (see decode_image).
    """
    return normalise(prepare_pixels(data, config), config)


def normalise(pixels: "np.ndarray", config: ImageConfig) -> "np.ndarray":
    """uint8 [3, H, W] -> float32 [3, H, W]. Batches do the same on their device."""
    import numpy as np

    mean, std = (np.array(values, np.float32)[:, None, None] for values in (config.mean, config.std))
    return (np.ascontiguousarray(pixels).astype(np.float32) - mean) / std


def resize_image(
    picture: "PIL.Image.Image",
    config: ImageConfig,
    box: Box | None = None,
    turn: "PIL.Image.Transpose | None" = None,
) -> "np.ndarray":
    """RGB picture of any size -> uint8 [size, size, 3], bicubic, resampled once.

    squash: the sides are stretched. crop: the centre square. letterbox: the whole picture on the mean colour.
    box: left, top, right, bottom of what counts of the picture; None: all of it. turn: what sets it upright, if it
    does not stand so.
    """
    import numpy as np
    import PIL.Image

    box = box or (0, 0, *picture.size)
    width, height = box[2:]
    if config.resize == "crop":
        box = _centre_square(width, height)
    if config.resize != "letterbox":
        width = height = max(width, height)
    # At least one pixel: a 1 x 1000 line must not vanish.
    sides = [max(1, math.floor(side * config.size / max(width, height) + 0.5)) for side in (width, height)]
    resized = picture.resize((sides[0], sides[1]), PIL.Image.Resampling.BICUBIC, box=box)
    if turn is not None:
        resized = resized.transpose(turn)
    pixels = np.asarray(resized)
    return pixels if resized.size == (config.size, config.size) else _on_mean(pixels, config)


def _decode(
    data: bytes, config: ImageConfig | None
) -> "tuple[PIL.Image.Image, Box | None, PIL.Image.Transpose | None]":
    """(RGB picture, what counts of it, how to turn it upright), at reduced scale where `config` says what it is for."""
    import PIL.Image

    try:
        picture: PIL.Image.Image = PIL.Image.open(io.BytesIO(data), formats=FORMATS)
        if picture.width * picture.height > MAX_PIXELS:
            raise ValueError(f"{picture.width} x {picture.height} pixels, over the limit of {MAX_PIXELS:,}")
        box = _reduce(picture, config) if config is not None else None
        picture.load()
        turn = _turn(picture)
        return _to_rgb(picture), box, turn
    except (*BROKEN, PIL.Image.DecompressionBombWarning, PIL.Image.DecompressionBombError) as error:
        raise ValueError(f"not a readable picture: {error}") from error


def _reduce(picture: "PIL.Image.Image", config: ImageConfig) -> Box | None:
    """Has a JPEG decoded at the largest reduction (2, 4, 8) after which the resize still shrinks the picture.

    Returns what counts of the result: libjpeg rounds its sides up. None where nothing is reduced.
    """
    if picture.format not in ("JPEG", "MPO"):
        return None
    side = max(picture.size) if config.resize == "letterbox" else min(picture.size)
    for scale in SCALES:
        if side >= scale * config.size:
            drafted = picture.draft(None, (max(1, picture.width // scale), max(1, picture.height // scale)))
            return drafted[1] if drafted else None
    return None


def _turn(picture: "PIL.Image.Image") -> "PIL.Image.Transpose | None":
    """How the picture is to be turned to stand upright; damaged EXIF turns nothing. TIFF was turned by Pillow."""
    import PIL.Image

    try:
        name = TURNS.get(picture.getexif().get(ORIENTATION, 1))
    except (*BROKEN, ValueError):
        return None
    return PIL.Image.Transpose[name] if name else None


def _to_rgb(picture: "PIL.Image.Image") -> "PIL.Image.Image":
    import PIL.Image
    import PIL.ImageChops

    if picture.mode in DEEP:
        picture = _eight_bits(picture)
    elif picture.mode == "CMYK" and picture.format in ("JPEG", "MPO") and "adobe" not in picture.info:
        picture = PIL.ImageChops.invert(picture)  # Pillow takes every CMYK JPEG for Adobe's, whose inks are inverted
    elif picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        canvas = PIL.Image.new("RGBA", picture.size, "white")
        canvas.alpha_composite(picture)
        picture = canvas
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def _eight_bits(picture: "PIL.Image.Image") -> "PIL.Image.Image":
    """Grey of 16 bits, 32 bits or floats -> 8 bits; Pillow's own conversion would cut everything above 255 to white.

    White is 65535 for 16 bits. The others do not say: it is the first of 1 (floats), 255 (floats), 65535 and the
    largest value that no value exceeds.
    """
    import numpy as np
    import PIL.Image

    values = np.nan_to_num(np.asarray(picture).astype(np.float64), posinf=0, neginf=0)
    largest = values.max()
    whites = {"F": (1, 255, 65535), "I": (65535,)}.get(picture.mode, (65535,))
    white = next((value for value in whites if largest <= value), largest)
    return PIL.Image.fromarray((np.clip(values, 0, white) * (255 / white) + 0.5).astype(np.uint8))


def _centre_square(width: float, height: float) -> Box:
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def _on_mean(pixels: "np.ndarray", config: ImageConfig) -> "np.ndarray":
    """uint8 [h, w, 3] laid in the middle of [size, size, 3]."""
    height, width, _ = pixels.shape
    top, left = (config.size - height) // 2, (config.size - width) // 2
    canvas = _blank(config.size, config.mean).copy()
    canvas[top : top + height, left : left + width] = pixels
    return canvas


@lru_cache(maxsize=4)
def _blank(size: int, mean: tuple[float, float, float]) -> "np.ndarray":
    import numpy as np

    return np.full((size, size, 3), [round(value) for value in mean], np.uint8)
