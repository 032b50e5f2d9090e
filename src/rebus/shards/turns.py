"""Conversations: LLaVA's `conversations` and chat `messages`, pictures and videos at their places."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import dropwhile
from typing import Any

from rebus.pictures import native
from rebus.records import Image, Part, Role, Text, Video
from rebus.shards.damage import (
    BAD_JSON,
    NO_ASSISTANT_TEXT,
    PLACEHOLDER,
    PLACEHOLDER_MISMATCH,
    UNKNOWN_ROLE,
    UNPLACED_VIDEO,
    DamagedSampleError,
    check_length,
    match_images,
)

_ROLES: dict[str, Role] = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system",
}  # fmt: skip

PICTURES = {"image": "image", "image_url": "image", "video": "video"}
"""Types of an element that stand for pictures (`image_url` is OpenAI's), and what each is."""


@dataclass(frozen=True)
class Place:
    """Where one image stands, or a video: as many of the following pictures as there are seconds."""

    limits: native.Limits = ()
    seconds: tuple[float, ...] = ()
    fps: float = 0.0

    @property
    def num_images(self) -> int:
        return len(self.seconds) or 1


_IMAGE = Place()
Turn = tuple[Role, list[str | Place]]


def conversation_parts(metadata: Mapping[str, Any], images: Sequence[Image]) -> list[Part]:
    """LLaVA's `conversations` (from, value) or `messages` (role, content), images at their placeholders.

    content: a text with placeholders, or a list of {"type": "text", "text"}, {"type": "image"} and {"type": "video",
    "num_frames", "seconds", "fps"} (its frames are the next pictures), the last two with native.LIMITS. What
    the assistant says before anybody else spoke is left out, as LLaVA leaves it out: it answers nothing.
    Raises: DamagedSampleError.
    """
    turns = [_turn(entry) for entry in turns_of(metadata)]
    if turns and turns[0][0] == "assistant":
        turns = list(dropwhile(lambda turn: turn[0] == "assistant", turns))
    if "messages" in metadata and "conversations" not in metadata and images:
        turns = _place_images(turns, len(images))
    _refuse_unplaced_video(metadata, turns)
    num_places = num_chars = 0
    answered = False
    for role, pieces in turns:
        for piece in pieces:
            if isinstance(piece, str):
                num_chars += len(piece)
                answered = answered or (role == "assistant" and bool(piece.strip()))
            elif role == "assistant":
                raise DamagedSampleError(PLACEHOLDER_MISMATCH, f"the assistant's text holds {PLACEHOLDER}")
            else:
                num_places += piece.num_images
    if not answered:
        raise DamagedSampleError(NO_ASSISTANT_TEXT)
    match_images(num_places, len(images))
    check_length(num_chars)
    following = iter(images)
    return [
        Text(piece, role) if isinstance(piece, str) else _pictures(piece, following)
        for role, pieces in turns
        for piece in pieces
        if piece
    ]


def _place_images(turns: list[Turn], num_images: int) -> list[Turn]:
    """PaddleMIX's rule: where no turn has a place for the images, they come before the first user's words."""
    if any(isinstance(piece, Place) for _, pieces in turns for piece in pieces):
        return turns
    first = next((number for number, (role, _) in enumerate(turns) if role == "user"), None)
    if first is None:
        return turns
    said = "".join(piece for piece in turns[first][1] if isinstance(piece, str))
    return [*turns[:first], ("user", _split(f"{PLACEHOLDER}\n" * num_images + said)), *turns[first + 1 :]]


def _refuse_unplaced_video(metadata: Mapping[str, Any], turns: list[Turn]) -> None:
    """A file of video beside the turns would leave its placeholder in the text, and nothing of it to see."""
    if not (metadata.get("video") or metadata.get("videos")):
        return
    if not any(isinstance(piece, Place) and piece.seconds for _, pieces in turns for piece in pieces):
        wanted = '{"type": "video", "video": file}'
        raise DamagedSampleError(UNPLACED_VIDEO, f"`video` is not read: write it as a part of its turn, {wanted}")


def _pictures(place: Place, following: Iterator[Image]) -> Image | Video:
    if not place.seconds:
        return _at(place, next(following))
    return Video(tuple(_at(place, next(following)) for _ in place.seconds), place.seconds, "user", place.fps)


def _at(place: Place, image: Image) -> Image:
    if image.role == "user" and not place.limits:
        return image  # planning sees ten million: spared a copy each
    return Image(image.width, image.height, image.data, "user", place.limits)


def turns_of(metadata: Mapping[str, Any]) -> list[Any]:
    """Raises: DamagedSampleError where there are none."""
    turns = metadata["conversations"] if "conversations" in metadata else metadata.get("messages")
    if not isinstance(turns, list):
        raise DamagedSampleError(BAD_JSON, f"turns are a {type(turns).__name__}, not a list")
    return turns


def opens_with_answer(metadata: Mapping[str, Any]) -> bool:
    """True where the assistant speaks first, in turns that conversation_parts took."""
    return role_of(turns_of(metadata)[0]) == "assistant"


def content_of(entry: Any) -> str | list[Any]:
    """What one turn says, as it is written. Raises: DamagedSampleError."""
    if not isinstance(entry, dict):
        raise DamagedSampleError(BAD_JSON, f"a turn is a {type(entry).__name__}, not an object")
    content = entry.get("value", entry.get("content"))
    if not isinstance(content, (str, list)):
        raise DamagedSampleError(BAD_JSON, f"a turn's text is a {type(content).__name__}")
    return content


def role_of(entry: Mapping[str, Any]) -> Role:
    name = entry.get("from", entry.get("role"))
    if not isinstance(name, str) or name not in _ROLES:
        raise DamagedSampleError(UNKNOWN_ROLE, f"{name!r}; known are {', '.join(_ROLES)}")
    return _ROLES[name]


def _turn(entry: Any) -> Turn:
    content = content_of(entry)
    if isinstance(content, str):
        return role_of(entry), _split(content)
    pieces: list[str | Place] = []
    for element in content:
        for piece in _element_pieces(element):
            if pieces and isinstance(piece, str) and isinstance(last := pieces[-1], str):
                pieces[-1] = last + piece
            else:
                pieces.append(piece)
    return role_of(entry), pieces


def _split(text: str) -> list[str | Place]:
    if PLACEHOLDER not in text:
        return [text]
    pieces: list[str | Place] = []
    for piece in text.split(PLACEHOLDER):
        pieces += [piece, _IMAGE]
    return pieces[:-1]


def _element_pieces(element: Any) -> list[str | Place]:
    """One entry of the chat form."""
    kind = PICTURES.get(str(element.get("type"))) if isinstance(element, dict) else None
    if kind == "image":
        return [Place(limits_of(element))]
    if kind == "video":
        return [Place(limits_of(element), _seconds(element), _fps(element))]
    if isinstance(element, dict) and isinstance(element.get("text"), str):
        return _split(element["text"])
    raise DamagedSampleError(BAD_JSON, "a turn's content holds something that is neither text, image nor video")


def limits_of(element: Mapping[str, Any]) -> native.Limits:
    """What an element asks of the resize. Raises: DamagedSampleError for a value that is no size."""
    try:
        return native.limits_of(element)
    except ValueError as error:
        raise DamagedSampleError(BAD_JSON, str(error)) from error


def _seconds(element: Mapping[str, Any]) -> tuple[float, ...]:
    seconds, num_frames = element.get("seconds"), element.get("num_frames")
    if not isinstance(seconds, list) or not seconds or len(seconds) != num_frames:
        raise DamagedSampleError(BAD_JSON, "a video has `num_frames` and as many `seconds`: frames are kept, not files")
    if not all(isinstance(second, int | float) for second in seconds):
        raise DamagedSampleError(BAD_JSON, "a video's `seconds` are no numbers")
    return tuple(float(second) for second in seconds)


def _fps(element: Mapping[str, Any]) -> float:
    """Frames that were taken of a second; 0 where the json does not say."""
    fps = element.get("fps", 0.0)
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 <= fps < math.inf:
        raise DamagedSampleError(BAD_JSON, f"a video's `fps` is {fps!r}")
    return float(fps)
