"""The one template renderer: parts -> spans. Training, evaluation, chat and the server lay out samples here alone.

Every span says by itself whether it is trained on, so the loss mask is built, never found again by re-tokenising.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby

from rebus.errors import DataError
from rebus.pictures.prepare import visuals_of
from rebus.records import Image, Part, Sample, Text
from rebus.tokens.config import TokensConfig
from rebus.tokens.spacing import fit
from rebus.tokens.spans import ImageSpan, Span, SpecialSpan, TextSpan, Turn, merge, opening
from rebus.tokens.templates import style
from rebus.tokens.tokenizer import Tokens


def render(sample: Sample, tokens: Tokens) -> list[Span]:
    """Lays out a whole sample. A document (no part has a role) is rendered as plain under every template."""
    config = tokens.config
    if config.template == "plain" or _is_document(sample.parts):
        return [*_document(sample.parts, config), SpecialSpan(config.end_of_text, trainable=True)]
    return _fitted(style(config.template).conversation(_turns(sample.parts, config), tokens, is_open=False), tokens)


def render_prompt(parts: Sequence[Part], tokens: Tokens) -> list[Span]:
    """Lays out what precedes an answer, with the assistant's header where the template has one; nothing closes it."""
    config = tokens.config
    if config.template == "plain" or _is_document(parts):
        return _document(parts, config)
    return _fitted(style(config.template).conversation(_turns(parts, config), tokens, is_open=True), tokens)


def render_answer(text: str, tokens: Tokens, *, in_turns: bool) -> list[Span]:
    """An answer as a conversation (`in_turns`) or a document goes on with it: its words, the token that ends it."""
    if tokens.config.template == "plain" or not in_turns:
        return [TextSpan(text, trainable=True), SpecialSpan(tokens.config.end_of_text, trainable=True)]
    exchange = Sample("", "", "", (Text("?", "user"), Text(text, "assistant")))
    return [span for span in render(exchange, tokens) if not isinstance(span, ImageSpan) and span.trainable]


def user_turn(text: str, images: Sequence[Image] = ()) -> list[Part]:
    """What a person says about pictures: each picture, a line break, then the words (LLaVA's `<image>\\n` layout)."""
    shown = [part for image in images for part in (replace(image, role="user"), Text("\n", "user"))]
    return [*shown, Text(text, "user")]


def _is_document(parts: Sequence[Part]) -> bool:
    return all(part.role == "" for part in parts)


def _document(parts: Sequence[Part], config: TokensConfig) -> list[Span]:
    """Its opening is a target where something precedes it: the document before, in a pack that is laid out as one
    (Open-Qwen2VL)."""
    start = [SpecialSpan(config.start_of_text, trainable=True)] if config.start_of_text is not None else []
    return [*start, *merge(_content(parts, config))]


def _content(parts: Iterable[Part], config: TokensConfig) -> list[Span]:
    spans: list[Span] = []
    before, after = ([SpecialSpan(name, False)] if name else [] for name in (config.image_start, config.image_end))
    for part in parts:
        if isinstance(part, Text):
            spans.append(TextSpan(part.text, part.trainable))
        else:
            for visual in visuals_of(part, config.image):
                spans += [*before, ImageSpan(visual), *after]
    return spans


def _turns(parts: Sequence[Part], config: TokensConfig) -> list[Turn]:
    """Neighbouring parts of one role are one turn; an image without a role joins the turn that follows it."""
    parts = list(parts)
    for index in range(len(parts) - 1, -1, -1):
        part = parts[index]
        if part.role == "" and not isinstance(part, Text) and index + 1 < len(parts):
            parts[index] = replace(part, role=parts[index + 1].role)
        elif part.role == "":
            kind = type(part).__name__.lower()
            raise DataError(f"part {index} ({kind}) of a conversation has no role; every part needs who speaks.")
    system = style(config.template).SYSTEM if config.system is None else config.system
    told = [Turn("system", (TextSpan(system, False),))] if system and parts[0].role != "system" else []
    turns = groupby(parts, key=lambda part: part.role)
    return [*told, *(Turn(role, tuple(_content(turn, config))) for role, turn in turns)]


def _fitted(spans: Iterable[Span], tokens: Tokens) -> list[Span]:
    """One text where texts of a kind meet, one opening token at most, and white space as the tokenizer wants it."""
    merged = merge(spans)
    is_opened = style(tokens.config.template).OPENED and merged[:1] != [*opening(tokens.config)]
    if is_opened:
        merged = [*opening(tokens.config), *merged]
    return fit(merged, tokens.spacing, is_opened=is_opened and tokens.config.start_of_text is not None)
