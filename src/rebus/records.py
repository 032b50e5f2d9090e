"""What flows between stages: a Sample made of parts. Captions, interleaved pages and conversations are all Samples."""

import hashlib
from dataclasses import dataclass
from typing import Literal

Role = Literal["", "system", "user", "assistant"]
"""Who speaks. An empty role is a document (a caption, a page): all of its text is trained on."""


@dataclass(frozen=True)
class Text:
    """A run of text. Trained on if it is a document's (role "") or the assistant's."""

    text: str
    role: Role = ""

    @property
    def trainable(self) -> bool:
        return self.role in ("", "assistant")


@dataclass(frozen=True)
class Image:
    """An encoded image (JPEG, PNG, WebP bytes, never decoded here) and its upright size in pixels, by its header.

    `data` is None where only the size matters, as in planning. width, height: 0 where nobody looked yet.
    limits: what the source asks of the resize (`min_pixels`, `max_pixels`, `resized_height` ...), name and value.
    """

    width: int
    height: int
    data: bytes | None = None
    role: Role = ""
    limits: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Video:
    """Frames that were taken from a video. seconds: the time of each in the video. fps: how many were taken of a second
    of it (frames over duration, not over the span of `seconds`); 0 where nobody knows."""

    frames: tuple[Image, ...]
    seconds: tuple[float, ...]
    role: Role = ""
    fps: float = 0.0


Part = Text | Image | Video


@dataclass(frozen=True)
class Sample:
    """One training or evaluation example.

    key: its name inside its shard. uid: 128 bits as 32 hex digits (DataComp's form). source: the shard it came from.
    """

    key: str
    uid: str
    source: str
    parts: tuple[Part, ...]

    @property
    def images(self) -> tuple[Image, ...]:
        """All pictures in order, the frames of videos among them."""
        return tuple(image for part in self.parts for image in images_of(part))


def images_of(part: Part) -> tuple[Image, ...]:
    """The pictures of one part: itself, a video's frames, or none."""
    match part:
        case Image():
            return (part,)
        case Video():
            return part.frames
        case Text():
            return ()


@dataclass(frozen=True)
class Damage:
    """A sample that cannot be used, and where to look: one line of a quarantine file.

    offset: byte position of the sample's first member inside the shard; -1 where the shard itself is unreadable.
    """

    shard: str
    key: str
    offset: int
    reason: str
    detail: str = ""


def content_uid(*contents: bytes) -> str:
    """A 128-bit uid (32 hex digits) from what a sample holds, for sources that bring none."""
    digest = hashlib.blake2b(digest_size=16)
    for content in contents:
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    return digest.hexdigest()
