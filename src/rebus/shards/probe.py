"""What an encoded picture says before a pixel of it is decoded: its format, its size and what is odd about it."""

import io
from dataclasses import dataclass

# The classes are called by themselves: PIL.Image.open warns of large pictures through state that threads share.
import PIL.BmpImagePlugin
import PIL.GifImagePlugin
import PIL.Image
import PIL.JpegImagePlugin
import PIL.MpoImagePlugin
import PIL.PngImagePlugin
import PIL.TiffImagePlugin
import PIL.WebPImagePlugin

from rebus.pictures.decode import BROKEN, MAX_PIXELS, SIDEWAYS, TURNS, orientation
from rebus.records import Image, Role
from rebus.shards.damage import (
    ANIMATED,
    BOMB,
    CMYK,
    EXIF_ROTATED,
    EXTREME_ASPECT,
    SIXTEEN_BIT,
    TINY_PICTURE,
    UNREADABLE_IMAGE,
    WRONG_EXTENSION,
    ZERO_BYTE_IMAGE,
    DamagedSampleError,
)
from rebus.shards.headers import quick_header

FORMATS = {"WEBP": "webp", "JPEG": "jpg", "MPO": "jpg", "PNG": "png", "GIF": "gif", "BMP": "bmp", "TIFF": "tif"}
"""Picture formats that are opened, and their extension (MPO is a camera's JPEG). No other decoder runs on foreign
bytes: Pillow knows some fifty, one of which (EPS) starts Ghostscript."""

MAX_ASPECT = 200  # longer side over shorter: Qwen2-VL refuses what is beyond (smart_resize)
MIN_SIDE = 2  # pixels; 1 x 1 is a page's counter of visits, not a picture

_OPENERS = (
    (b"\xff\xd8\xff", PIL.JpegImagePlugin.jpeg_factory),
    (b"\x89PNG\r\n\x1a\n", PIL.PngImagePlugin.PngImageFile),
    (b"RIFF", PIL.WebPImagePlugin.WebPImageFile),
    (b"GIF8", PIL.GifImagePlugin.GifImageFile),
    (b"BM", PIL.BmpImagePlugin.BmpImageFile),
    (b"II*\0", PIL.TiffImagePlugin.TiffImageFile),
    (b"MM\0*", PIL.TiffImagePlugin.TiffImageFile),
)
REFUSED = (*BROKEN, ValueError, Warning)
"""What Pillow raises for bytes that are no picture, or none that is whole."""

_BITS_PER_SAMPLE = 258  # a tag of TIFF
_OTHER_NAMES = {"jpeg": "jpg", "tiff": "tif"}


@dataclass(frozen=True)
class Header:
    """format: a key of FORMATS. width, height: in pixels, upright. notes: constants of damage.NOTES."""

    format: str
    width: int
    height: int
    notes: tuple[str, ...] = ()


def open_header(data: bytes) -> PIL.Image.Image:
    """Opens a picture without decoding its pixels. Raises: DamagedSampleError."""
    if not data:
        raise DamagedSampleError(ZERO_BYTE_IMAGE)
    try:
        picture = next(opener for start, opener in _OPENERS if data.startswith(start))(io.BytesIO(data))
    except PIL.Image.DecompressionBombError as error:  # Pillow's WebP looks before it opens its decoder
        raise DamagedSampleError(BOMB, str(error)) from error
    except (*REFUSED, StopIteration) as error:
        known = ", ".join(sorted(set(FORMATS.values())))
        detail = f"{len(data)} bytes that begin with {data[:8]!r}: {known} are read"
        raise DamagedSampleError(UNREADABLE_IMAGE, detail) from error
    _refuse_bomb(*picture.size)
    return picture


def read_header(data: bytes) -> Header:
    """Format, size and oddities. Raises: DamagedSampleError for what is no picture or too large a one."""
    found = quick_header(data)
    if found is None:
        picture = open_header(data)
        return Header(str(picture.format), *_upright(picture), _notes(picture, data))
    _refuse_bomb(found.width, found.height)
    return Header(found.format, found.width, found.height, tuple(found.notes))


def probe_image(data: bytes, role: Role = "") -> Image:
    """Upright size from the header. Raises: DamagedSampleError for what is no picture, or none that shows anything."""
    return probe_named(data, "", role)[0]


def probe_named(data: bytes, extension: str, role: Role = "") -> tuple[Image, tuple[str, ...]]:
    """As probe_image, with what is odd about the picture. extension: of its member; empty where it has no name."""
    header = read_header(data)
    width, height = header.width, header.height
    if min(width, height) < MIN_SIDE:
        raise DamagedSampleError(TINY_PICTURE, f"{width} x {height} pixels")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise DamagedSampleError(EXTREME_ASPECT, f"{width} x {height} pixels; up to {MAX_ASPECT}:1 is used")
    name = extension.rpartition(".")[2]
    is_named_well = not name or _OTHER_NAMES.get(name, name) == FORMATS[header.format]
    return Image(width, height, data, role), header.notes if is_named_well else (*header.notes, WRONG_EXTENSION)


def _refuse_bomb(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise DamagedSampleError(BOMB, f"{width} x {height} pixels, over the limit of {MAX_PIXELS:,}")


def _notes(picture: PIL.Image.Image, data: bytes) -> tuple[str, ...]:
    """Of a picture that quick_header left to Pillow."""
    try:
        found = {
            CMYK: picture.mode == "CMYK",
            SIXTEEN_BIT: _is_deep(picture, data),
            ANIMATED: picture.format in ("GIF", "PNG", "WEBP") and getattr(picture, "is_animated", False),
            EXIF_ROTATED: orientation(picture) in TURNS,
        }
    except REFUSED as error:
        raise DamagedSampleError(UNREADABLE_IMAGE, str(error)) from error
    return tuple(note for note, is_so in found.items() if is_so)


def _upright(picture: PIL.Image.Image) -> tuple[int, int]:
    """(width, height) as decode_image gives it; of a TIFF Pillow itself says the upright size."""
    width, height = picture.size
    is_sideways = picture.format != "TIFF" and orientation(picture) in SIDEWAYS
    return (height, width) if is_sideways else (width, height)


def _is_deep(picture: PIL.Image.Image, data: bytes) -> bool:
    """More than 8 bits a channel; Pillow's mode hides it for colour PNG, where byte 24 is the depth."""
    if isinstance(picture, PIL.TiffImagePlugin.TiffImageFile):
        return max(picture.tag_v2.get(_BITS_PER_SAMPLE, (1,))) > 8
    return picture.mode.startswith("I") or (picture.format == "PNG" and data[24] == 16)
