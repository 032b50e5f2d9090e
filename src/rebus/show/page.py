"""A pack as one self-contained HTML page: pictures inlined, nothing fetched, light and dark."""

import base64
import io
from html import escape

from rebus.pictures import decode_image
from rebus.show.view import DocumentView, PackView, SlotView, TokenView

THUMBNAIL_SIDE = 160

STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1c; --paper: #fdfdfb; --card: #f1f1ec; --dim: #6d6d68; --trained: #0a6b2d;
  --mark: #d6f0dc; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e4; --paper: #161616; --card: #222220; --dim: #9b9b94;
  --trained: #8be0a4; --mark: #173b22; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 60rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.3rem; } h2 { font-size: .9rem; margin: 0 0 .5rem; color: var(--dim); font-weight: 500; }
article { background: var(--card); border-radius: 8px; padding: 1rem; margin: 1rem 0; overflow-wrap: anywhere; }
meter { width: 100%; height: 1.2rem; } img { border-radius: 4px; }
figure { display: inline-block; margin: 0 1rem .5rem 0; } figcaption, .key { color: var(--dim); font-size: .8rem; }
.tokens { white-space: pre-wrap; font: .9rem/1.9 ui-monospace, monospace; }
.tokens span { color: var(--dim); border-left: 1px solid color-mix(in srgb, var(--dim) 30%, transparent); }
.tokens .trained { color: var(--trained); background: var(--mark); border-bottom: 2px solid var(--trained); }
.damage { color: #c0392b; }
"""


def render_page(pack: PackView, title: str) -> str:
    """The whole page. title: what was packed."""
    documents = "\n".join(_document(number, document) for number, document in enumerate(pack.documents))
    share = pack.num_tokens / pack.capacity
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n"
        f'<p>{escape(pack.caption)}</p>\n<meter value="{share:.4f}">{share:.1%}</meter>\n'
        '<p class="key"><span class="tokens"><span class="trained">trained on</span> <span>context only</span></span>'
        f" Point at a token to see its id.</p>\n{documents}\n</body>\n</html>\n"
    )


def _document(number: int, document: DocumentView) -> str:
    head = f"{number} · {document.key} · {document.num_tokens} tokens, {document.num_trained} trained on"
    damage = f'<p class="damage">left out: {escape(document.damage)}</p>' if document.damage else ""
    figures = "".join(_figure(piece) for piece in document.pieces if isinstance(piece, SlotView))
    tokens = "".join(_piece(piece) for piece in document.pieces)
    return f'<article><h2>{escape(head)}</h2>{damage}{figures}<div class="tokens">{tokens}</div></article>'


def _piece(piece: TokenView | SlotView) -> str:
    if isinstance(piece, SlotView):
        return f"<span>[image: {piece.num_tokens} positions]</span>"
    css = ' class="trained"' if piece.trained else ""
    return f'<span{css} title="{piece.id}">{escape(piece.text).replace(chr(10), "⏎" + chr(10))}</span>'


def _figure(slot: SlotView) -> str:
    caption = f"<figcaption>{slot.width} × {slot.height}</figcaption>"
    return f'<figure><img src="{_data_uri(slot.data)}" alt="the document\'s picture">{caption}</figure>'


def _data_uri(data: bytes) -> str:
    """A thumbnail as WebP inside the address itself."""
    picture = decode_image(data)
    picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
