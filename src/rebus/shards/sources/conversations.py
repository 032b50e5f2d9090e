"""LLaVA's JSON (`image` a path, a list of paths or absent; `conversations`), `messages` with `images`, and chat
`messages` whose content is a list of texts, images and videos, as Qwen2-VL's examples write it."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rebus.shards.assemble import uid_of
from rebus.shards.damage import LINKED_VIDEO, PLACEHOLDER, DamagedSampleError
from rebus.shards.sources.files import as_members, read_image
from rebus.shards.sources.tables import find_pieces, read_piece
from rebus.shards.sources.video import read_video
from rebus.shards.turns import PICTURES, content_of, limits_of, turns_of

__all__ = ["build", "describe", "find_pieces", "read_piece", "survey"]


@dataclass(frozen=True)
class _Video:
    """asked: the element of the source. stored: what the json keeps of it; `build` adds its frames."""

    asked: Mapping[str, Any]
    stored: dict[str, Any]


def build(record: dict[str, Any], root: Path) -> dict[str, bytes]:
    """Members of one conversation; videos become frames. Raises: DamagedSampleError."""
    stored, sources = _walk(record)
    images: list[tuple[str, bytes]] = []
    for source in sources:
        if isinstance(source, _Video):
            frames = read_video(root, source.asked)
            source.stored.update(frames.times)
            images += frames.pictures
        else:
            images.append(read_image(root, source))
    members = as_members(images)
    turns = json.dumps(turns_of(stored), ensure_ascii=False).encode()
    uid = uid_of(record, {**members, "json": turns})
    return {**members, "json": json.dumps({**stored, "uid": uid}, ensure_ascii=False).encode()}


def describe(record: dict[str, Any]) -> dict[str, Any]:
    """The content of the json that `build` writes, but for the uid; no file is opened. Raises: DamagedSampleError."""
    return survey(record)[0]


def survey(record: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    """(what `describe` gives, the pictures in order as paths or data: URIs). Raises: DamagedSampleError."""
    stored, sources = _walk(record)
    if stored is not record and any(isinstance(source, _Video) for source in sources):
        raise DamagedSampleError(LINKED_VIDEO, "frames must be taken from it: write shards with `link: false`")
    return stored, sources


def _walk(record: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
    """(what the json keeps, names of pictures and videos in order)."""
    named = record.get("image") or record.get("images")
    listed = list(named) if isinstance(named, list) else [named] if named else []
    turns = turns_of(record)
    if all(type(turn) is dict and type(turn.get("value")) is str for turn in turns):  # LLaVA's: nearly all there is
        return record, listed
    contents = [content_of(entry) for entry in turns]
    if any(isinstance(content, list) for content in contents):
        return _walk_elements(record, turns, contents, listed)
    return record, listed


def _walk_elements(
    record: dict[str, Any], turns: list[Any], contents: list[Any], listed: list[Any]
) -> tuple[dict[str, Any], list[Any]]:
    following = iter(listed)
    sources: list[Any] = []
    stored = []
    for turn, content in zip(turns, contents, strict=True):
        elements = content if isinstance(content, list) else [{"text": content}]
        kept = [_element(element, following, sources) for element in elements]
        name = "value" if "value" in turn else "content"
        stored.append({**turn, name: kept} if isinstance(content, list) else turn)
    name = "conversations" if "conversations" in record else "messages"
    return {**record, name: stored}, [*sources, *following]


def _element(element: Any, following: Iterator[Any], sources: list[Any]) -> Any:
    """What the json keeps of one element; its picture, or the next of the listed ones, goes to `sources`."""
    kind = PICTURES.get(str(element.get("type"))) if isinstance(element, dict) else None
    if kind is None:
        text = element.get("text") if isinstance(element, dict) else None
        sources += [name for _, name in zip(range(str(text).count(PLACEHOLDER)), following, strict=False)]
        return element
    stored = {"type": kind, **dict(limits_of(element))}
    if kind == "video":
        sources.append(_Video(element, stored))
        return stored
    own = element.get("image", element.get("image_url", element.get("url")))
    own = own.get("url") if isinstance(own, dict) else own
    sources += [own] if own else [name for _, name in zip(range(1), following, strict=False)]
    return {**stored, "image": own} if isinstance(own, str) and not own.startswith("data:") else stored
