"""The bytes of an answer -> a picture of the wanted size and format. What a server calls its answer counts for nothing:
the header is read before anything is decoded, and everything is decoded before it is kept."""

import io
import json
from dataclasses import dataclass

import PIL.ExifTags
import PIL.Image

from rebus.pictures.decode import BROKEN, Target, decode
from rebus.shards.damage import UNDECODABLE_IMAGE, DamagedSampleError
from rebus.shards.download import reasons
from rebus.shards.download.config import Download
from rebus.shards.probe import FORMATS, Header, open_header, read_header

QUALITY = 95  # of JPEG and WebP where the recipe names none
HEAD_BYTES = 1024
_SIDEWAYS = (
    *(PIL.Image.Transpose.ROTATE_90, PIL.Image.Transpose.ROTATE_270),
    *(PIL.Image.Transpose.TRANSPOSE, PIL.Image.Transpose.TRANSVERSE),
)
_NAMES = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}
Size = tuple[int, int]


@dataclass(frozen=True)
class Resized:
    """size, original_size: (width, height) in pixels, upright."""

    data: bytes
    size: Size
    original_size: Size


def resize(data: bytes, options: Download) -> Resized:
    """Raises: DamagedSampleError with the reason."""
    refuse_markup(data)
    header = read_header(data)
    original = header.width, header.height
    _refuse_shape(header, options)
    size = scaled_size(original, options)
    target = Target(1, is_longer=True) if size is None else _draft(size, options)
    picture, box, turn = _decode(data, target if size is not None or _is_kept(header, options) else None)
    if size is None and _is_kept(header, options):
        return Resized(data, original, original)
    if size is not None:
        flat = size[::-1] if turn in _SIDEWAYS else size
        picture = picture.resize(flat, PIL.Image.Resampling.LANCZOS, box=box)
    picture = picture if turn is None else picture.transpose(turn)
    picture = picture if size is None else _square(picture, options)
    return Resized(_encode(picture, options), picture.size, original)


def refuse_markup(data: bytes) -> None:
    """Raises: DamagedSampleError for pages and drawings, which no opener of pictures names."""
    head = data[:HEAD_BYTES].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head.startswith(b"<"):
        return
    if b"<svg" in head:
        raise DamagedSampleError(reasons.SVG, "drawings are not rendered")
    raise DamagedSampleError(reasons.HTML, repr(head[:40]))


def scaled_size(original: Size, options: Download) -> Size | None:
    """Width and height before anything is cut or laid on white; None where the size stays."""
    if options.resize_mode == "no":
        return None
    by_longer = options.resize_mode in ("border", "keep_ratio_largest")
    side = max(original) if by_longer else min(original)
    is_right = side == options.image_size and options.resize_mode.startswith("keep_ratio")
    if is_right or (options.resize_only_if_bigger and side <= options.image_size):
        return None
    width, height = (max(1, round(one * options.image_size / side)) for one in original)
    if width * height > options.max_pixels:
        raise DamagedSampleError(reasons.TOO_MANY_PIXELS, f"{width} x {height} pixels after the resize")
    return width, height


def exif_of(data: bytes) -> str:
    """EXIF as JSON, tags by name, values as text; of what cannot be read nothing."""
    try:
        found = open_header(data).getexif()
    except (*BROKEN, ValueError, Warning, DamagedSampleError):
        return "{}"
    return json.dumps({str(PIL.ExifTags.TAGS.get(tag, tag)): str(value) for tag, value in found.items()})


def _refuse_shape(header: Header, options: Download) -> None:
    shape = f"{header.width} x {header.height} pixels"
    short, long = sorted((header.width, header.height))
    if header.width * header.height > options.max_pixels:
        raise DamagedSampleError(reasons.TOO_MANY_PIXELS, f"{shape}, max_pixels is {options.max_pixels:,}")
    if short < options.min_image_size:
        raise DamagedSampleError(reasons.TOO_SMALL, f"{shape}, min_image_size is {options.min_image_size}")
    if long > options.max_aspect_ratio * short:
        raise DamagedSampleError(reasons.TOO_LONG, f"{shape}, max_aspect_ratio is {options.max_aspect_ratio:g}")


def _is_kept(header: Header, options: Download) -> bool:
    return options.skip_reencode and FORMATS[header.format] == options.encode_format


def _draft(size: Size, options: Download) -> Target:
    """What a JPEG is decoded for: twice the wanted size, so that its own coarse scaling leaves no trace."""
    by_longer = options.resize_mode in ("border", "keep_ratio_largest")
    return Target(2 * (max(size) if by_longer else min(size)), by_longer)


def _decode(
    data: bytes, target: Target | None
) -> tuple[PIL.Image.Image, tuple[float, float, float, float] | None, PIL.Image.Transpose | None]:
    try:
        return decode(data, target)
    except ValueError as error:
        raise DamagedSampleError(UNDECODABLE_IMAGE, str(error)) from error


def _square(picture: PIL.Image.Image, options: Download) -> PIL.Image.Image:
    """Cuts the middle out, or lays the picture in the middle of white."""
    side, (width, height) = options.image_size, picture.size
    left, top = (width - side) // 2, (height - side) // 2
    if options.resize_mode == "center_crop":
        return picture.crop((left, top, left + side, top + side))
    if options.resize_mode == "border":
        canvas = PIL.Image.new("RGB", (side, side), "white")
        canvas.paste(picture, (-left, -top))
        return canvas
    return picture


def _encode(picture: PIL.Image.Image, options: Download) -> bytes:
    quality = options.encode_quality
    how = {"quality": QUALITY if quality is None else quality}
    if options.encode_format == "png":
        how = {} if quality is None else {"compress_level": quality}
    buffer = io.BytesIO()
    try:
        picture.save(buffer, _NAMES[options.encode_format], **how)
    except (OSError, ValueError) as error:  # a WebP has at most 16,383 pixels a side
        raise DamagedSampleError(UNDECODABLE_IMAGE, f"{picture.size} cannot be written: {error}") from error
    return buffer.getvalue()
