"""What an encoded picture says of itself before a pixel of it is decoded: its format and its size."""

import io
import struct
import warnings

# Pillow registers a format when its plugin is imported; it tries only registered ones.
import PIL.BmpImagePlugin
import PIL.GifImagePlugin
import PIL.Image
import PIL.JpegImagePlugin
import PIL.MpoImagePlugin
import PIL.PngImagePlugin
import PIL.TiffImagePlugin
import PIL.WebPImagePlugin

from rebus.records import Image, Role
from rebus.shards.damage import BOMB, UNREADABLE_IMAGE, ZERO_BYTE_IMAGE, DamagedSampleError

DECODERS = ("WEBP", "JPEG", "PNG", "GIF", "BMP")
FORMATS = {"WEBP": "webp", "JPEG": "jpg", "MPO": "jpg", "PNG": "png", "GIF": "gif", "BMP": "bmp"}
"""Picture formats that are opened, and their extension (MPO is a camera's JPEG). No other decoder runs on foreign
bytes: Pillow knows some fifty, one of which (EPS) starts Ghostscript."""


def open_header(data: bytes) -> PIL.Image.Image:
    """Opens a picture without decoding its pixels. Raises: DamagedSampleError."""
    if not data:
        raise DamagedSampleError(ZERO_BYTE_IMAGE)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
            return PIL.Image.open(io.BytesIO(data), formats=DECODERS)
    except (PIL.Image.DecompressionBombWarning, PIL.Image.DecompressionBombError) as error:
        raise DamagedSampleError(BOMB, str(error)) from error
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        detail = f"{len(data)} bytes that begin with {data[:8]!r}: {', '.join(sorted(set(FORMATS.values())))} are read"
        raise DamagedSampleError(UNREADABLE_IMAGE, detail) from error


def probe_image(data: bytes, role: Role = "") -> Image:
    """Size from the header. Raises: DamagedSampleError."""
    width, height = open_header(data).size
    if width < 1 or height < 1:
        raise DamagedSampleError(UNREADABLE_IMAGE, f"{width} x {height} pixels")
    return Image(width, height, data, role)
