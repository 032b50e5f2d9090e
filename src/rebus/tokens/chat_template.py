"""The tokenizer's own chat template, run once for each shape of conversation, with marks in place of what is said.

So nothing that was said is ever seen by the template or read as a special token, and what the template writes around a
mark is known for certain: its special tokens, its places for pictures, what it trims, what it trains on.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from rebus.errors import DataError
from rebus.tokens.spans import SpecialSpan, TextSpan

Shape = tuple[tuple[str, tuple[str, ...]], ...]
"""Of each turn: who speaks, and what of ("text", "image", "video")."""
MARK = "\ue000{}\ue001"
EDGE = "\u2003"
"""White space beside a text's mark, which only a template that trims texts takes away."""
MARKS = re.compile(f"({EDGE}?)\ue000(\\d+)\ue001({EDGE}?)")
PLACES = {"image": ["<|image_pad|>", "<image>", "<|image|>"], "video": ["<|video_pad|>", "<video>", "<|video|>"]}
"""What templates of released models write where a picture goes, besides what the tokenizer's config names."""


@dataclass(frozen=True)
class ChatTemplate:
    """named: bos_token and the like. special: the tokenizer's special tokens. places: what stands for which kind."""

    source: str
    named: tuple[tuple[str, str], ...]
    special: tuple[str, ...]
    places: tuple[tuple[str, str], ...]
    folder: str


@dataclass(frozen=True)
class Hole:
    """Where something said goes; a picture too, where the template knows of none. number: among everything said. trims:
    whether a text loses its white space left and right."""

    number: int
    trims: tuple[bool, bool]


@dataclass(frozen=True)
class Place:
    """Where the template has put the next picture, or video."""

    kind: str


Piece = TextSpan | SpecialSpan | Hole | Place


def read_chat_template(folder: Path, special: Sequence[str]) -> ChatTemplate:
    """Reads what lies beside tokenizer.json. A processor's template knows pictures, so it goes before the tokenizer's.

    Raises: DataError where there is no template, or one that closes an answer with no special token.
    """
    config, processor = _json(folder / "tokenizer_config.json"), _json(folder / "processor_config.json")
    jinja = folder / "chat_template.jinja"
    source = jinja.read_text(encoding="utf-8") if jinja.is_file() else None
    for tree in (_json(folder / "chat_template.json"), config):
        source = source or _default(tree.get("chat_template"))
    if not source:
        raise DataError(
            f"{folder} has no chat template: no chat_template.jinja, no `chat_template` in tokenizer_config.json or "
            "chat_template.json. Choose a `template:` by name."
        )
    tokens = {**_json(folder / "special_tokens_map.json"), **config}
    named = {name: _content(token) for name, token in tokens.items() if name.endswith("_token") and _content(token)}
    places = {text: kind for kind, texts in PLACES.items() for text in texts}
    for tree in (config, processor):
        places |= {_content(tree[f"{kind}_token"]): kind for kind in PLACES if _content(tree.get(f"{kind}_token"))}
    template = ChatTemplate(source, tuple(named.items()), tuple(special), tuple(places.items()), str(folder))
    _closing_text(template)
    return template


def closing(template: ChatTemplate) -> str:
    """The special token that closes an answer."""
    return re.findall(_any_of(template.special), _closing_text(template))[-1]


@lru_cache(maxsize=65536)
def skeleton(template: ChatTemplate, shape: Shape, is_open: bool) -> tuple[Piece, ...]:
    """What the template makes of a conversation of this shape. is_open: it ends with what announces an answer.

    Raises: DataError where the template loses something said, or where it cannot be known what an answer is.
    """
    form, text = _written(template, shape, is_open)
    pieces: list[Piece] = []
    done = 0
    ranges = list(_answers(template, shape, form, text))
    for mark in MARKS.finditer(text):
        pieces += _literal(template, text, done, mark.start(), ranges)
        pieces.append(Hole(int(mark[2]), (not mark[1], not mark[3])))
        done = mark.end()
    return (*pieces, *_literal(template, text, done, len(text), ranges))


def _answers(template: ChatTemplate, shape: Shape, form: str, text: str) -> Iterator[tuple[int, int]]:
    """Start and end, in the rendered text, of all that is trained on: from the prompt's end to the closing token."""
    closing_text, number = _closing_text(template), 0
    for place, (role, kinds) in enumerate(shape):
        number += len(kinds)
        if role != "assistant" or not kinds:
            continue
        prompt = _run(template, shape[:place], form, is_open=True)
        said = [mark for mark in MARKS.finditer(text) if number - len(kinds) <= int(mark[2]) < number]
        end = max(mark.end() for mark in said)
        lead = text[len(prompt) : min(mark.start() for mark in said)]
        if not text.startswith(prompt) or re.search(_any_of(template.special), lead):
            raise _underivable(template, f"turn {place} does not go on where its generation prompt ends")
        if not text.startswith(closing_text, end):
            raise _underivable(template, f"it closes turn {place} otherwise than with {closing_text!r}")
        yield len(prompt), end + len(closing_text)


@lru_cache
def _closing_text(template: ChatTemplate) -> str:
    """What follows an answer, up to and with the first special token."""
    shape: Shape = (("user", ("text",)), ("assistant", ("text",)))
    _, text = _written(template, shape, is_open=False)
    tail = text[[*MARKS.finditer(text)][-1].end() :]
    found = re.search(_any_of(template.special), tail)
    if found is None:
        raise _underivable(template, f"it closes an answer with {tail!r}, in which there is no special token")
    return tail[: found.end()]


def _underivable(template: ChatTemplate, why: str) -> DataError:
    return DataError(
        f"the chat template of {template.folder} does not show which tokens to train on: {why}. "
        "Choose a `template:` by name."
    )


def _written(template: ChatTemplate, shape: Shape, is_open: bool) -> tuple[str, str]:
    """In which form the template takes what is said, and the text: strings where only text is said, else parts; parts
    everywhere; strings everywhere, pictures in them where they stand."""
    failure: DataError | None = None
    for form in ("mixed", "parts", "strings"):
        try:
            text = _run(template, shape, form, is_open=is_open)
        except DataError as error:
            failure = failure or error
            continue
        if _is_whole(template, shape, form, text):
            return form, text
    raise failure or DataError(
        f"the chat template of {template.folder} loses or reorders what is said in a conversation of "
        f"{[(role, *kinds) for role, kinds in shape]}. Choose a `template:` by name."
    )


def _is_whole(template: ChatTemplate, shape: Shape, form: str, text: str) -> bool:
    kinds = [kind for _, said in shape for kind in said]
    expected = [number for number, kind in enumerate(kinds) if kind == "text" or form == "strings"]
    if [int(mark[2]) for mark in MARKS.finditer(text)] != expected:
        return False
    places, wanted = (
        dict(template.places),
        [] if form == "strings" else sorted(kind for kind in kinds if kind != "text"),
    )
    return sorted(places[found] for found in re.findall(_any_of(places), MARKS.sub("", text))) == wanted


def _run(template: ChatTemplate, shape: Shape, form: str, *, is_open: bool) -> str:
    from rebus.tokens import sandbox  # jinja2, for those who ask for this template alone

    messages, number = [], 0
    for role, kinds in shape:
        marks = [_mark(number + place, kind) for place, kind in enumerate(kinds)]
        said = zip(kinds, marks, strict=True)
        parts = [{"type": kind, "text": mark} if kind == "text" else {"type": kind} for kind, mark in said]
        is_string = form == "strings" or (form == "mixed" and kinds == ("text",))
        messages.append({"role": role, "content": "".join(marks) if is_string else parts})
        number += len(kinds)
    return sandbox.run(template.source, messages, template.named, is_open=is_open)


def _mark(number: int, kind: str) -> str:
    return EDGE + MARK.format(number) + EDGE if kind == "text" else MARK.format(number)


def _literal(
    template: ChatTemplate, text: str, start: int, end: int, ranges: Sequence[tuple[int, int]]
) -> Iterator[Piece]:
    """The template's own text, parted at special tokens, at places for pictures, and where training begins and ends."""
    places = dict(template.places)
    edges = {start, end, *(edge for pair in ranges for edge in pair if start < edge < end)}
    for found in re.finditer(_any_of([*places, *template.special]), text[start:end]):
        edges |= {start + found.start(), start + found.end()}
    cuts = sorted(edges)
    for first, last in pairwise(cuts):
        piece, trainable = text[first:last], any(low <= first < high for low, high in ranges)
        if piece in places:
            yield Place(places[piece])
        else:
            yield SpecialSpan(piece, trainable) if piece in template.special else TextSpan(piece, trainable)


@lru_cache
def _pattern(texts: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True)) or r"(?!)")


def _any_of(texts: Any) -> re.Pattern[str]:
    return _pattern(tuple(texts))


def _default(template: Any) -> str | None:
    """Some folders hold several templates by name."""
    if isinstance(template, list):
        return next((one["template"] for one in template if one.get("name") == "default"), None)
    return template if isinstance(template, str) else None


def _content(token: Any) -> str:
    return token.get("content", "") if isinstance(token, dict) else token if isinstance(token, str) else ""


def _json(path: Path) -> dict[str, Any]:
    """Raises: DataError that names a file that is no JSON object."""
    if not path.is_file():
        return {}
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}. Copy it again from where it came.") from error
    return tree if isinstance(tree, dict) else {}
