"""Why a picture did not come, in a few words to count by, and which of it may have passed when asked again."""

import re

TIMEOUT = "timeout"
NOT_CONNECTED = "no connection"
BROKEN_OFF = "connection broke off"
HOST_WAITS = "host asks to wait"
RESOLVER_FAILED = "name server does not answer"
UNKNOWN_HOST = "unknown host"
BAD_CERTIFICATE = "bad certificate"
BAD_URL = "bad URL"
PRIVATE_ADDRESS = "private address"
TOO_MANY_REDIRECTS = "too many redirects"
TOO_MANY_BYTES = "too many bytes"
ROBOTS = "refused by X-Robots-Tag"
OTHER_HASH = "another hash"
HTML = "HTML instead of a picture"
SVG = "SVG"
TOO_SMALL = "smaller than min_image_size"
TOO_LONG = "beyond max_aspect_ratio"
TOO_MANY_PIXELS = "more than max_pixels"

_PASSING = (TIMEOUT, NOT_CONNECTED, BROKEN_OFF, HOST_WAITS, RESOLVER_FAILED)
_PASSING_STATUS = re.compile(r"HTTP (408|425|429|5\d\d)")


def of_status(status: int) -> str:
    return f"HTTP {status}"


def is_retryable(reason: str) -> bool:
    """Whether the same question may get another answer later. 404 and 410 say gone, 403 says no."""
    return reason in _PASSING or _PASSING_STATUS.fullmatch(reason) is not None
