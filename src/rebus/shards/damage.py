"""What can be wrong with one sample, in a few words to count by."""

from rebus.errors import DataError

PLACEHOLDER = "<image>"
MAX_CAPTION_CHARS = 32_768  # alt texts reach some thousand; beyond lie whole pages that a crawler took for a caption
MAX_DOCUMENT_CHARS = 1_000_000  # of a conversation or a page

ZERO_BYTE_IMAGE = "zero-byte image"
UNREADABLE_IMAGE = "unreadable image header"
UNDECODABLE_IMAGE = "undecodable image"
BOMB = "decompression bomb"
EXTREME_ASPECT = "extreme aspect ratio"
TINY_PICTURE = "tiny picture"
TOO_MANY_FRAMES = "too many frames"
MISSING_IMAGE = "missing image"
SURPLUS_IMAGE = "more than one image"
MISSING_CAPTION = "missing caption"
EMPTY_CAPTION = "empty caption"
OVERSIZED_CAPTION = "oversized caption"
PLACEHOLDER_IN_CAPTION = "<image> in a caption"
PLACEHOLDER_MISMATCH = "placeholder count mismatch"
NO_ASSISTANT_TEXT = "no assistant text"
UNKNOWN_ROLE = "unknown role"
BAD_UTF8 = "bad UTF-8"
BAD_JSON = "bad JSON"
BAD_BASE64 = "bad base64"
BAD_PACK = "damaged pack"
BAD_PARQUET = "unreadable parquet"
REMOTE_FILE = "file behind a URL"
UNREADABLE_VIDEO = "unreadable video"
LINKED_VIDEO = "video in linked rows"
UNPLACED_VIDEO = "video outside of its turn"

CMYK = "CMYK"
SIXTEEN_BIT = "16-bit"
ANIMATED = "animated"
NO_JSON = "no json"
WRONG_EXTENSION = "wrong extension"
EXIF_ROTATED = "EXIF rotated"
ANSWER_FIRST = "assistant speaks first"
NOTES = (CMYK, SIXTEEN_BIT, ANIMATED, NO_JSON, WRONG_EXTENSION, EXIF_ROTATED, ANSWER_FIRST)
"""What is odd about a sample that is used all the same: the index's column `notes` names them."""


class DamagedSampleError(DataError):
    """This one sample cannot be used. reason: one of the constants above; detail: what exactly."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


def match_images(num_placeholders: int, num_images: int) -> None:
    """Raises: DamagedSampleError where a sample has another number of places than of pictures."""
    if num_placeholders != num_images:
        raise DamagedSampleError(PLACEHOLDER_MISMATCH, f"{num_placeholders} placeholders for {num_images} images")


def check_length(num_chars: int) -> None:
    """Raises: DamagedSampleError for a document that is longer than any that a person wrote."""
    if num_chars > MAX_DOCUMENT_CHARS:
        raise DamagedSampleError(OVERSIZED_CAPTION, f"{num_chars} characters, the limit is {MAX_DOCUMENT_CHARS}")
