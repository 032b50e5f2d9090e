"""Conversations: LLaVA's `conversations` and chat `messages`, pictures at their placeholders."""

from collections.abc import Mapping, Sequence
from typing import Any

from rebus.records import Image, Part, Role, Text
from rebus.shards.damage import (
    BAD_JSON,
    NO_ASSISTANT_TEXT,
    PLACEHOLDER,
    PLACEHOLDER_MISMATCH,
    UNKNOWN_ROLE,
    DamagedSampleError,
    check_length,
    match_images,
)

_ROLES: dict[str, Role] = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system",
}  # fmt: skip


def conversation_parts(metadata: Mapping[str, Any], images: Sequence[Image]) -> list[Part]:
    """LLaVA's `conversations` (from, value) or `messages` (role, content), images at their placeholders."""
    turns = [_turn(entry) for entry in _turns(metadata)]
    if not any(role == "assistant" and text.strip() for role, text in turns):
        raise DamagedSampleError(NO_ASSISTANT_TEXT)
    if any(role == "assistant" and PLACEHOLDER in text for role, text in turns):
        raise DamagedSampleError(PLACEHOLDER_MISMATCH, f"the assistant's text holds {PLACEHOLDER}")
    match_images(sum(text.count(PLACEHOLDER) for _, text in turns), len(images))
    check_length(sum(len(text) for _, text in turns))
    parts: list[Part] = []
    following = iter(images)
    for role, text in turns:
        for index, piece in enumerate(text.split(PLACEHOLDER)):
            if index:
                image = next(following)
                parts.append(Image(image.width, image.height, image.data, "user"))
            if piece:
                parts.append(Text(piece, role))
    return parts


def _turns(metadata: Mapping[str, Any]) -> list[Any]:
    turns = metadata["conversations"] if "conversations" in metadata else metadata["messages"]
    if not isinstance(turns, list):
        raise DamagedSampleError(BAD_JSON, f"turns are a {type(turns).__name__}, not a list")
    return turns


def _turn(entry: Any) -> tuple[Role, str]:
    if not isinstance(entry, dict):
        raise DamagedSampleError(BAD_JSON, f"a turn is a {type(entry).__name__}, not an object")
    name = entry.get("from", entry.get("role"))
    if not isinstance(name, str) or name not in _ROLES:
        raise DamagedSampleError(UNKNOWN_ROLE, f"{name!r}; known are {', '.join(_ROLES)}")
    content = entry.get("value", entry.get("content"))
    if isinstance(content, list):
        content = "".join(_content_piece(piece) for piece in content)
    if not isinstance(content, str):
        raise DamagedSampleError(BAD_JSON, f"a turn's text is a {type(content).__name__}")
    return _ROLES[name], content


def _content_piece(piece: Any) -> str:
    """One entry of the chat form {"type": "text", "text": ...} or {"type": "image"}."""
    if isinstance(piece, dict) and piece.get("type") == "image":
        return PLACEHOLDER
    if isinstance(piece, dict) and isinstance(piece.get("text"), str):
        return piece["text"]
    raise DamagedSampleError(BAD_JSON, "a turn's content holds something that is neither text nor image")
