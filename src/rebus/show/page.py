"""Packs as one self-contained HTML page: documents in colours, pictures where they stand in the text."""

from collections.abc import Sequence
from html import escape

from rebus.packs.plan import Plan
from rebus.pictures.config import NativeConfig
from rebus.show.html import render_shell, thumbnail
from rebus.show.plan import summarise
from rebus.show.view import DocumentView, PackView, SlotView, TokenView

NUM_PACKS = 8  # on a page of a whole plan
THUMBNAIL_SIDE = 128  # pixels

LIGHT = (
    ("#0072b2", "#e3f0f9"),
    ("#b85c00", "#fbeadb"),
    ("#00785a", "#ddf3ea"),
    ("#9c4a86", "#f7e6f1"),
    ("#7a6a00", "#f5f0cf"),
)
DARK = (
    ("#56b4e9", "#12293a"),
    ("#f0a030", "#38260c"),
    ("#4fd1a5", "#0f2f25"),
    ("#e08fc6", "#34202e"),
    ("#e6d94a", "#2e2b0e"),
)
"""Strong colour and tint of a document, light and dark, after Okabe and Ito 2008. Neighbours differ in every common
kind of colour blindness; numbers and borders tell them apart without colour."""
INK = {"light": ("#1c1c1c", "#63635e"), "dark": ("#e8e8e4", "#a5a59e")}
"""Of tokens that are trained on, and of context."""


def _palette(colours: Sequence[tuple[str, str]]) -> str:
    return "".join(f".c{n} {{ --line: {line}; --tint: {tint}; }}\n" for n, (line, tint) in enumerate(colours))


CSS = (
    _palette(LIGHT)
    + "@media (prefers-color-scheme: dark) {\n"
    + _palette(DARK)
    + "}\n"
    + """
.fill { display: flex; height: 1.5rem; border: 1px solid var(--dim); border-radius: 4px; overflow: hidden; }
.fill a { background: var(--line); border-right: 1px solid var(--paper); min-width: 0; display: block; }
.free { flex: 1; background: repeating-linear-gradient(45deg, var(--rule) 0 3px, transparent 3px 8px); }
.documents { margin: .8rem 0 2.5rem; }
article { border-left: 6px solid var(--line); background: var(--tint); padding: .45rem .8rem .55rem; margin: 0 0 .4rem;
  border-radius: 0 6px 6px 0; }
article h3 { font-size: .8rem; font-weight: 500; margin: 0 0 .2rem; color: var(--dim); }
article h3 b { color: var(--line); font-size: .95rem; } .cut { border-left-style: dashed; }
.tokens { white-space: pre-wrap; font: .88rem/1.85 ui-monospace, "DejaVu Sans Mono", monospace; }
.tokens i, .key i { font-style: normal; color: var(--dim); }
.tokens b, .key b { font-weight: 500; color: var(--ink); border-bottom: 2px solid var(--line); padding-bottom: 2px; }
.tokens i + i, .tokens b + b, .tokens i + b, .tokens b + i { border-left: 1px solid
  color-mix(in srgb, var(--dim) 25%, transparent); }
.slot { display: inline-flex; flex-direction: column; vertical-align: middle; margin: .2rem .5rem; }
.tokens .slot:first-child { margin-left: 0; }
.slot img { border: 2px solid var(--line); } .slot small { color: var(--dim); font-size: .7rem; line-height: 1.5; }
"""
)


def render_page(plan: Plan, packs: Sequence[PackView], *, whole: bool = False) -> str:
    """Some packs of a plan. whole: under the plan's own figures; else the page is of one pack alone."""
    if not whole:
        return render_shell(f"{plan.folder}, pack {packs[0].number}", _key(plan) + _pack(packs[0], ""), CSS)
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in summarise(plan).rows)
    body = "".join(_pack(pack, f"<h2>pack {pack.number}</h2>") for pack in packs)
    return render_shell(str(plan.folder), f"<table>{rows}</table>{_key(plan)}{body}", CSS)


def _key(plan: Plan) -> str:
    origin = "the pack" if plan.cross_document else "each document"
    counted = f"positions from 0 in {origin}"
    if isinstance(plan.tokens.image, NativeConfig):
        counted = f"and from 0 in {origin}; the model turns by three other counts (time, height, width)"
    return (
        '<p class="key dim c0"><b>trained on</b> &nbsp; <i>context only</i> &nbsp; one colour a document, '
        "a dashed edge where it was cut, hatching where the pack is empty. "
        f"Places count through the pack, {counted}. "
        "Point at a token for its place and id, at a picture for its size.</p>"
    )


def _pack(pack: PackView, head: str) -> str:
    across = (
        '<p class="bad">cross_document: attention and positions run through the pack as if it were one document.</p>'
        if pack.cross_document
        else ""
    )
    documents = "\n".join(_document(pack, number, document) for number, document in enumerate(pack.documents))
    return f'{head}<p>{escape(pack.caption)}</p>{across}{_fill(pack)}<div class="documents">{documents}</div>\n'


def _fill(pack: PackView) -> str:
    """The positions of the pack, divided by documents."""
    bars = "".join(
        f'<a class="c{number % len(LIGHT)}" style="width:{100 * one.num_tokens / pack.capacity:.3f}%" '
        f'href="#p{pack.number}d{number}" title="{escape(f"{number}: {one.caption}", quote=True)}"></a>'
        for number, one in enumerate(pack.documents)
        if not one.damage
    )
    free = pack.capacity - pack.num_tokens
    return f'<div class="fill">{bars}<span class="free" title="{free:,} positions are empty"></span></div>'


def _document(pack: PackView, number: int, document: DocumentView) -> str:
    origin = 0 if pack.cross_document else document.start
    css = f"c{number % len(LIGHT)}" + (" cut" if document.parts else "")
    damage = f'<p class="bad">left out: {escape(document.damage)}</p>' if document.damage else ""
    tokens = "".join(_piece(piece, origin) for piece in document.pieces)
    head = f"<h3><b>{number}</b> {escape(document.caption)} · {escape(document.source)}</h3>"
    name = f"p{pack.number}d{number}"
    return f'<article class="{css}" id="{name}">{head}{damage}<div class="tokens">{tokens}</div></article>'


def _piece(piece: TokenView | SlotView, origin: int) -> str:
    """origin: where the positions that the model sees begin to count, a document's first or the pack's."""
    seen = piece.position - origin
    if isinstance(piece, SlotView):
        span = f"{seen:,} to {seen + piece.num_tokens - 1:,}"
        picture = thumbnail(piece.data, THUMBNAIL_SIDE, f"{piece.about} pixels")
        kind = f"video, {piece.num_frames} frames<br>" if piece.num_frames else ""
        return f'<span class="slot">{picture}<small>{kind}{piece.num_tokens:,} tokens<br>{span}</small></span>'
    tag = "b" if piece.trained else "i"
    text = escape(piece.text).replace("\n", "⏎\n") or "·"
    return f'<{tag} title="{seen} · {piece.id}">{text}</{tag}>'
