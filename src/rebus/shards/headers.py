"""The headers of plain JPEG, PNG and WebP files read directly: some ten times as fast as opening them with Pillow, for
which a WebP's header is a whole decoder. Whatever is not plain is left to Pillow, and nothing that it refuses passes.
"""

import zlib
from typing import NamedTuple

from rebus.shards.damage import CMYK, SIXTEEN_BIT


class QuickHeader(NamedTuple):
    """format as Pillow names it; width, height in pixels; notes: constants of damage.NOTES."""

    format: str
    width: int
    height: int
    notes: tuple[str, ...] = ()


def quick_header(data: bytes) -> QuickHeader | None:
    """None where only a whole decoder can tell: an odd, damaged, animated or rotated picture, or another format."""
    if data.startswith(b"\xff\xd8\xff"):
        return _jpeg(data)
    if data.startswith(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"):
        return _png(data)
    if data.startswith(b"RIFF") and data[8:15] == b"WEBPVP8":
        return _webp(data)
    return None


_SOF = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive
_SKIPPED = (0xC4, 0xDD, 0xE0, 0xEE, 0xFE)  # Huffman tables, restart interval, JFIF, Adobe, comment


def _jpeg(data: bytes) -> QuickHeader | None:
    """ITU T.81, B.1: segments up to the start of scan. EXIF, several pictures in one (MPO), 12 bits are not plain."""
    position, found = 2, None
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4], "big")
        body, end = position + 4, position + 2 + length
        if length < 2 or end > len(data):
            return None
        if marker == 0xDA:
            return found
        if marker in _SOF and found is None and length >= 8:
            found = _frame(data[body:end])
            if found is None:
                return None
        elif marker == 0xDB:
            if not _are_tables(data[body:end]):
                return None
        elif marker not in _SKIPPED and not (marker == 0xE2 and data[body : body + 12] == b"ICC_PROFILE\0"):
            return None
        position = end
    return None


def _frame(body: bytes) -> QuickHeader | None:
    """Precision, height, width, number of components, three bytes a component."""
    height, width = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
    is_plain = body[0] == 8 and body[5] in (1, 3, 4) and len(body) == 6 + 3 * body[5] and width and height
    return QuickHeader("JPEG", width, height, (CMYK,) if body[5] == 4 else ()) if is_plain else None


def _are_tables(body: bytes) -> bool:
    """Quantisation tables of 8 bits: one byte and 64 values each."""
    return len(body) % 65 == 0 and all(body[start] < 4 for start in range(0, len(body), 65))


_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
"""PNG (ISO 15948), table 11.1: bit depths by colour type."""

_LENGTHS = {b"sRGB": 1, b"gAMA": 4, b"pHYs": 9, b"tIME": 7, b"cHRM": 32}


def _png(data: bytes) -> QuickHeader | None:
    """Chunks up to the pixels, with their checksums. Profiles, text, transparency tables, animation are not plain."""
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    if len(data) < 33 or data[24] not in _DEPTHS.get(data[25], ()) or data[26:28] != b"\0\0" or data[28] > 1:
        return None
    position = 8
    while position + 12 <= len(data):
        length, kind = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        if kind == b"IDAT":
            is_plain = 0 < width < 2**31 and 0 < height < 2**31
            return QuickHeader("PNG", width, height, (SIXTEEN_BIT,) if data[24] == 16 else ()) if is_plain else None
        end = position + 8 + length
        is_known = _LENGTHS.get(kind) == length or (kind == b"IHDR" and position == 8)
        is_known = is_known or (kind == b"PLTE" and length % 3 == 0 and 0 < length <= 768)
        if not is_known or data[end : end + 4] != zlib.crc32(data[position + 4 : end]).to_bytes(4, "big"):
            return None
        position = end + 4
    return None


def _webp(data: bytes) -> QuickHeader | None:
    """RFC 9649, a file of one still frame. VP8X (animation, EXIF, profiles, transparency beside VP8) is not plain."""
    kind, size = data[12:16], int.from_bytes(data[16:20], "little")
    riff = int.from_bytes(data[4:8], "little")
    if riff % 2 or riff + 8 > len(data) or riff != 12 + size + size % 2 or size < 10:
        return None
    if kind == b"VP8L" and data[20] == 0x2F:
        bits = int.from_bytes(data[21:25], "little")
        return QuickHeader("WEBP", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1) if bits >> 29 == 0 else None
    if kind != b"VP8 " or data[23:26] != b"\x9d\x01\x2a":
        return None
    tag = int.from_bytes(data[20:23], "little")  # RFC 6386, 9.1: key frame, version, shown, size of the first partition
    width, height = (int.from_bytes(data[at : at + 2], "little") & 0x3FFF for at in (26, 28))
    is_plain = not tag & 1 and tag >> 1 & 7 <= 3 and tag >> 4 & 1 and tag >> 5 < size and width and height
    return QuickHeader("WEBP", width, height) if is_plain else None
