"""Encoded bytes -> an upright RGB picture, whatever the format, depth or colour."""

import io
import struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import PIL.Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""What is decoded. Pillow knows more, some by starting other programs (EPS: Ghostscript): not for foreign data."""

MAX_PIXELS = 89_478_485
"""Pictures with more are refused before they are decoded: Pillow's own limit, 256 MiB as RGB."""

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
SIDEWAYS = (5, 6, 7, 8)
"""Orientations that change a picture's width for its height."""

BROKEN = (OSError, SyntaxError, EOFError, struct.error, LookupError, TypeError, ArithmeticError)
"""What Pillow raises for bytes that are no whole picture; a decompression bomb comes as a subclass of Exception."""

Box = tuple[float, float, float, float]


def decode_image(data: bytes) -> "PIL.Image.Image":
    """Decodes image bytes to RGB at full size, upright as EXIF says; sizes in an index are those of upright pictures.

    Transparency is laid on white, the first frame of an animation stands for it, deeper colours are scaled to 8 bits.
    Raises: ValueError with the reason where the bytes are no complete picture or a decompression bomb.
    """
    picture, _, turn = decode(data)
    return picture if turn is None else picture.transpose(turn)


class Target(NamedTuple):
    """What a JPEG is decoded for: this many pixels of its longer, or else of its shorter side."""

    side: int
    is_longer: bool


def decode(
    data: bytes, target: Target | None = None
) -> "tuple[PIL.Image.Image, Box | None, PIL.Image.Transpose | None]":
    """(RGB picture, what counts of it, how to turn it upright). A JPEG comes at the smallest scale that `target` still
    shrinks; None: everything at full size. Raises: ValueError as decode_image does."""
    import PIL.Image

    try:
        picture: PIL.Image.Image = PIL.Image.open(io.BytesIO(data), formats=FORMATS)
        if picture.width * picture.height > MAX_PIXELS:
            raise ValueError(f"{picture.width} x {picture.height} pixels, over the limit of {MAX_PIXELS:,}")
        turn = _turn(picture)
        box = _reduce(picture, target) if target is not None else None
        picture.load()
        return _to_rgb(picture), box, turn
    except PIL.UnidentifiedImageError as error:  # its own words name a place in memory
        raise ValueError(f"not a readable picture: {len(data):,} bytes that begin as none") from error
    except (*BROKEN, PIL.Image.DecompressionBombWarning, PIL.Image.DecompressionBombError) as error:
        raise ValueError(f"not a readable picture: {error}") from error


def _reduce(picture: "PIL.Image.Image", target: Target) -> Box | None:
    """Has a JPEG decoded at the largest reduction (2, 4, 8) after which the resize still shrinks the picture.

    Returns what counts of the result: libjpeg rounds its sides up. None where nothing is reduced.
    """
    if picture.format not in ("JPEG", "MPO"):
        return None
    side = max(picture.size) if target.is_longer else min(picture.size)
    for scale in SCALES:
        if side >= scale * target.side:
            drafted = picture.draft(None, (max(1, picture.width // scale), max(1, picture.height // scale)))
            return drafted[1] if drafted else None
    return None


def _turn(picture: "PIL.Image.Image") -> "PIL.Image.Transpose | None":
    """How the picture is to be turned to stand upright; damaged EXIF turns nothing. TIFF is turned by Pillow.

    Asked before the pixels are decoded: what a PNG says behind them no header reader sees, and counts nowhere.
    """
    import PIL.Image

    if picture.format == "TIFF":
        return None
    name = TURNS.get(orientation(picture))
    return PIL.Image.Transpose[name] if name else None


def orientation(picture: "PIL.Image.Image") -> int:
    """What EXIF in front of the pixels says, 1 where it says nothing or is damaged. No pixel is decoded."""
    import PIL.Image

    try:
        return PIL.Image.Image.getexif(picture).get(ORIENTATION, 1)  # a PNG's own would decode, to look behind pixels
    except (*BROKEN, ValueError, UserWarning):
        return 1


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
