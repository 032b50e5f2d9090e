"""What `source: urls` asks for and how it behaves towards the hosts it asks."""

from typing import Any, Literal

from pydantic import Field, model_validator

from rebus.config import Config

MAX_PIXELS = 89_478_485  # pictures.decode.MAX_PIXELS, beyond which nothing is decoded
DIRECTIVES = ("noai", "noimageai", "noindex", "noimageindex")
NETWORK = (
    *("concurrency", "concurrency_per_host", "delay_per_host", "timeout", "retries", "backoff", "max_retry_after"),
    *("max_redirects", "user_agent_url", "verify_certificates", "allow_private", "retry_failed"),
)
"""Options that say how pictures are fetched, not what becomes of them."""


class HashColumn(Config):
    """The column that holds a hash of each picture's bytes, as hex digits."""

    column: str
    kind: Literal["md5", "sha1", "sha256", "sha512"] = "sha256"


class Download(Config):
    """url_column, caption_column: by default `url` and the first of `caption`, `text`, `alt`, in any case of letters.
    Every other column goes into the json.

    digits: of a shard's number in its name. image_size, resize_mode: `keep_ratio` brings the shorter side to
    image_size pixels, `keep_ratio_largest` the longer one, `center_crop` and `border` make a square of it (cut, or laid
    on white), `no` leaves sizes alone. skip_reencode: bytes that need no resizing and are of the format stay as they
    came. encode_quality: 0 to 100, of png the compression 0 to 9.
    min_image_size, max_aspect_ratio, max_pixels: of the original. max_bytes: of an answer.
    timeout: seconds for the whole of one try, redirects included. retries: after 429, 5xx, timeouts and broken
    connections. backoff: seconds before the first retry, doubled for each next one. max_retry_after: up to so many
    seconds a host's Retry-After is waited for; beyond, its rows fail and `retry_failed` asks again another day.
    concurrency: requests at a time in all; delay_per_host: seconds between the starts of two requests to one host.
    user_agent_url: where the people you ask can read who you are. disallowed_directives: of X-Robots-Tag; a picture
    whose answer holds one is not used. allow_private: hosts in private networks, this machine among them.
    verify_hash: pictures that are not those of the table are refused.
    retry_failed: on a finished folder, asks again for what failed for a reason that may have passed.
    """

    url_column: str | None = None
    caption_column: str | None = None
    digits: int = Field(default=5, ge=1, le=12)
    image_size: int = Field(default=512, ge=8, le=16_384)
    resize_mode: Literal["no", "keep_ratio", "keep_ratio_largest", "center_crop", "border"] = "keep_ratio"
    resize_only_if_bigger: bool = True
    min_image_size: int = Field(default=0, ge=0)
    max_aspect_ratio: float = Field(default=200, ge=1, le=200)
    encode_format: Literal["jpg", "png", "webp"] = "jpg"
    encode_quality: int | None = Field(default=None, ge=0, le=100)
    skip_reencode: bool = True
    extract_exif: bool = False
    max_bytes: int = Field(default=32 * 2**20, ge=1)
    max_pixels: int = Field(default=MAX_PIXELS, ge=1, le=MAX_PIXELS)
    verify_hash: HashColumn | None = None
    disallowed_directives: tuple[str, ...] = DIRECTIVES
    timeout: float = Field(default=15, gt=0)
    retries: int = Field(default=2, ge=0, le=20)
    backoff: float = Field(default=1, ge=0)
    max_retry_after: float = Field(default=60, ge=0)
    max_redirects: int = Field(default=5, ge=0, le=20)
    concurrency: int = Field(default=128, ge=1, le=4096)
    concurrency_per_host: int = Field(default=4, ge=1)
    delay_per_host: float = Field(default=0, ge=0)
    user_agent_url: str | None = None
    verify_certificates: bool = True
    allow_private: bool = False
    retry_failed: bool = False

    @model_validator(mode="after")
    def _check_quality(self) -> "Download":
        if self.encode_format == "png" and (self.encode_quality or 0) > 9:
            raise ValueError(f"`encode_quality` = {self.encode_quality}: of png it is the compression, 0 to 9")
        return self

    def shaping(self) -> dict[str, Any]:
        """The options that decide which bytes come out, for the fingerprint."""
        return self.model_dump(mode="json", exclude=set(NETWORK))

    def shared_by(self, num_workers: int) -> "Download":
        """What each of several processes may do, so that all together keep to these limits."""
        return self.model_copy(
            update={
                "concurrency": self.concurrency // num_workers,
                "concurrency_per_host": self.concurrency_per_host // num_workers,
                "delay_per_host": self.delay_per_host * num_workers,
            }
        )
