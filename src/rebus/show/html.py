"""What pages of `rebus show` share: one self-contained file, pictures inlined, nothing fetched, no scripts."""

import base64
import io
from html import escape

from rebus.pictures.decode import decode_image

CSS = """
:root { color-scheme: light dark; --ink: #1c1c1c; --paper: #fdfdfb; --card: #f1f1ec; --dim: #63635e; --rule: #d5d5cf;
  --bad: #a83200; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e4; --paper: #161616; --card: #222220; --dim: #a5a59e;
  --rule: #3c3c38; --bad: #ff9a70; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; color: var(--ink);
  background: var(--paper); max-width: 72rem; margin: 2rem auto; padding: 0 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.35rem; margin: 0 0 .3rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .3rem; }
p { margin: .3rem 0 .7rem; } .dim { color: var(--dim); font-size: .85rem; } .bad { color: var(--bad); }
table { border-collapse: collapse; font-size: .9rem; } td, th { text-align: left; padding: .15rem 1rem .15rem 0;
  font-weight: 400; vertical-align: top; } th { color: var(--dim); }
code { font: .82rem/1.4 ui-monospace, "DejaVu Sans Mono", monospace; }
img { border-radius: 4px; background: #fff; }
"""


def render_shell(title: str, body: str, css: str = "") -> str:
    """A whole page."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}{css}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n"
        f"{body}\n</body>\n</html>\n"
    )


def thumbnail(data: bytes | None, side: int, about: str = "") -> str:
    """An <img> of at most `side` pixels, or why there is none. about: shown when pointed at."""
    try:
        picture = decode_image(data or b"")
    except ValueError as error:
        return f'<span class="bad">{escape(str(error))}</span>'
    picture.thumbnail((side, side))
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=75)
    uri = f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    place = f'width="{picture.width}" height="{picture.height}"'
    return f'<img src="{uri}" {place} alt="" title="{escape(about, quote=True)}">'
