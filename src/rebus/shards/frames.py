"""A TIFF holds pictures as a folder does (MINT keeps those of a document as frames of one): each becomes a PNG."""

import io

import PIL.Image
import PIL.TiffImagePlugin

from rebus.pictures.decode import MAX_PIXELS
from rebus.shards.damage import BOMB, TOO_MANY_FRAMES, UNREADABLE_IMAGE, DamagedSampleError
from rebus.shards.probe import REFUSED, open_header

MAX_FRAMES = 256
MAX_TOTAL_PIXELS = 4 * MAX_PIXELS
"""Of one file: a gibibyte as RGB, one frame after the other."""

_AS_IT_IS = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")  # Pillow's modes that PNG keeps
_CONVERTED = {"CMYK": "RGB", "YCbCr": "RGB", "LAB": "RGB", "I;16B": "I;16", "PA": "RGBA", "La": "LA", "RGBa": "RGBA"}


def frames_of(data: bytes) -> list[bytes]:
    """The pictures in an encoded picture: every frame of a TIFF as PNG, anything else as it is.

    Lossless, but for the colours of CMYK and its like, which PNG has not. Raises: DamagedSampleError.
    """
    if data[:4] not in (b"II*\0", b"MM\0*"):
        return [data]
    picture = open_header(data)
    assert isinstance(picture, PIL.TiffImagePlugin.TiffImageFile)
    frames: list[bytes] = []
    num_pixels = 0
    while True:
        num_pixels += picture.width * picture.height
        if num_pixels > MAX_TOTAL_PIXELS or picture.width * picture.height > MAX_PIXELS:
            raise DamagedSampleError(BOMB, f"frame {len(frames)}: {picture.width} x {picture.height} pixels")
        frames.append(_as_png(picture, len(frames)))
        try:
            picture.seek(len(frames))
        except EOFError:
            return frames
        except REFUSED as error:
            raise DamagedSampleError(UNREADABLE_IMAGE, f"frame {len(frames)}: {error}") from error
        if len(frames) == MAX_FRAMES:
            raise DamagedSampleError(TOO_MANY_FRAMES, f"more than {MAX_FRAMES} in one TIFF")


def _as_png(picture: PIL.Image.Image, number: int) -> bytes:
    mode = _CONVERTED.get(picture.mode, picture.mode)
    if mode not in _AS_IT_IS:
        raise DamagedSampleError(UNREADABLE_IMAGE, f"frame {number} has pixels of the kind {picture.mode}")
    buffer = io.BytesIO()
    try:
        frame = picture.convert(mode) if mode != picture.mode else picture
        frame.save(buffer, "PNG", compress_level=1, icc_profile=None)
    except REFUSED as error:
        raise DamagedSampleError(UNREADABLE_IMAGE, f"frame {number}: {error}") from error
    return buffer.getvalue()
