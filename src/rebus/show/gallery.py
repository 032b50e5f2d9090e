"""A shard as a page: its first samples with their pictures, and everything that is damaged."""

from html import escape
from pathlib import Path

from rebus.records import Sample, Text, images_of
from rebus.shards.link import read_link
from rebus.shards.read import read_sample
from rebus.show.html import render_shell, thumbnail
from rebus.show.shard import Listing, open_listing, pointer_to

NUM_SAMPLES = 100
SIDE = 200  # pixels of a thumbnail
MAX_IMAGES = 12  # of one sample
MAX_CHARS = 1200  # of one text
MAX_DAMAGED = 1000

CSS = """
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: .8rem; margin: 1rem 0; }
article { background: var(--card); border-radius: 8px; padding: .7rem; font-size: .88rem; line-height: 1.4; }
article p { margin: .35rem 0; white-space: pre-wrap; }
article img { max-width: 100%; height: auto; margin: 0 .3rem .2rem 0; }
.note { border: 1px solid var(--dim); border-radius: 9px; padding: 0 .5rem; font-size: .78rem; color: var(--dim);
  white-space: nowrap; }
code { white-space: nowrap; } td:nth-child(2) { min-width: 7rem; }
b { font-weight: 600; }
"""


def render_gallery(shard: Path) -> str:
    listing = open_listing(shard)
    link = read_link(shard)
    places = listing.index.slice(0, NUM_SAMPLES).to_pylist()
    cards = [_card(n, place, read_sample(shard, place, link)) for n, place in enumerate(places)]
    total = listing.index.num_rows
    head = f"{total:,} usable samples, {len(listing.damages):,} damaged. The first {len(cards):,} are shown."
    body = f'<p>{head}</p>{_damaged(listing)}<div class="gallery">{"".join(cards)}</div>'
    return render_shell(str(shard), body, CSS)


def _card(number: int, place: dict, sample: Sample) -> str:
    parts, num_images = [], 0
    for part in sample.parts:
        for image in images_of(part):
            num_images += 1
            if num_images <= MAX_IMAGES:
                parts.append(thumbnail(image.data, SIDE, f"{image.width} x {image.height}"))
        if isinstance(part, Text):
            role = f"<b>{part.role}:</b> " if part.role else ""
            more = " ..." if len(part.text) > MAX_CHARS else ""
            parts.append(f"<p>{role}{escape(part.text[:MAX_CHARS])}{more}</p>")
    if num_images > MAX_IMAGES:
        parts.append(f'<p class="dim">and {num_images - MAX_IMAGES} more pictures</p>')
    sizes = ", ".join(f"{image.width} x {image.height}" for image in sample.images[:3])
    notes = "".join(f' <span class="note">{escape(note)}</span>' for note in place["notes"].split(", ") if note)
    about = f'<p class="dim">{number} · {escape(sample.key)} · {place["kind"]} · {sizes or "text only"}{notes}</p>'
    return f"<article>{''.join(parts)}{about}</article>"


def _damaged(listing: Listing) -> str:
    if not listing.damages:
        return ""
    rows = "".join(
        f'<tr><td class="bad">{escape(one.reason)}</td><td>{escape(one.key) or "(no key)"}</td>'
        f"<td>{escape(one.detail[:MAX_CHARS])}</td><td><code>{escape(pointer_to(listing, one))}</code></td></tr>"
        for one in listing.damages[:MAX_DAMAGED]
    )
    head = "<tr><th>reason</th><th>key</th><th>detail</th><th>look at it</th></tr>"
    more = f"; the first {MAX_DAMAGED:,} are listed" if len(listing.damages) > MAX_DAMAGED else ""
    return (
        f"<details open><summary>Damaged and left out: {len(listing.damages):,}{more}</summary>"
        f"<table>{head}{rows}</table></details>"
    )
