"""Scores as a page: a histogram of every column, and the pictures at both ends of it."""

from html import escape

import pyarrow as pa
import pyarrow.compute as pc

from rebus.engine import list_shards
from rebus.errors import DataError
from rebus.records import Text
from rebus.report.figures import Outline, histogram, number
from rebus.shards.read import read_index, read_sample
from rebus.show.html import render_shell, thumbnail
from rebus.show.scores import Column, Scored, Scores, bin_counts, refuse_other_shards

NUM_BINS = 40
SIDE = 128  # pixels
MAX_CHARS = 160

CSS = """
section { display: grid; grid-template-columns: minmax(0, 30rem) minmax(0, 1fr); gap: 0 1.5rem; margin: 0 0 2rem;
  border-top: 1px solid var(--rule); padding-top: .6rem; }
section h2 { grid-column: 1 / -1; margin: 0; } section .dim { grid-column: 1 / -1; }
@media (max-width: 56rem) { section { grid-template-columns: minmax(0, 1fr); } }
svg.plot { width: 100%; height: auto; } svg.plot text { fill: var(--dim); font-size: 12.5px; }
svg.plot text.label { fill: var(--ink); } line.grid { stroke: var(--rule); } line.axis { stroke: var(--dim); }
.outline-a { fill: #0072b240; stroke: #0072b2; stroke-width: 1.8; }
@media (prefers-color-scheme: dark) { .outline-a { fill: #56b4e940; stroke: #56b4e9; } }
.ends { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: .6rem;
  font-size: .8rem; line-height: 1.35; }
.ends h3 { grid-column: 1 / -1; margin: .2rem 0 0; font-size: .85rem; font-weight: 600; }
.ends img { max-width: 100%; height: auto; display: block; }
.ends .key { color: var(--dim); }
"""


def render_scores(scores: Scores) -> str:
    """Raises: DataError, StrangerError where the shards are not those that were scored."""
    refuse_other_shards(scores)
    shards = {shard.stem: shard for shard in list_shards(scores.shards)}
    columns = list(scores.columns())
    looked_up = {one.uid: one for column in columns for one in (*column.lowest, *column.highest)}
    cards = {uid: _card(one, shards) for uid, one in looked_up.items()}
    body = "".join(_section(column, cards) for column in columns if column.varies)
    body += _constant([column for column in columns if not column.varies])
    head = f"{scores.manifest.facts['num_scored']:,} samples of {scores.shards}"
    return render_shell(f"Scores: {scores.folder}", f"<p>{escape(head)}</p>{body}", CSS)


def _section(column: Column, cards: dict[str, str]) -> str:
    names = ("min", "5%", "median", "95%", "max")
    facts = [f"{column.num_rows:,} rows", f"{column.num_missing:,} missing"]
    facts += [f"{name} {number(value)}" for name, value in zip(names, column.quantiles, strict=True)]
    head = f"<h2>{escape(column.title)}</h2>"
    heights, edges = bin_counts(column.values, NUM_BINS)
    drawing = histogram(
        edges.tolist(), [Outline("all", "outline-a", heights.tolist())], x_label=column.name, y_label="samples"
    )
    ends = _end("lowest", column.lowest, cards) + _end("highest", column.highest, cards)
    return (
        f'<section>{head}<p class="dim">{", ".join(facts)}</p><div>{drawing}</div>'
        f'<div class="ends">{ends}</div></section>'
    )


def _constant(columns: list[Column]) -> str:
    """Columns that tell no sample from another."""
    listed = [f"{one.title} {number(one.values[0]) if len(one.values) else 'without a value'}" for one in columns]
    return f'<p class="dim">The same for every sample: {escape(", ".join(listed))}.</p>' if listed else ""


def _end(title: str, found: tuple[Scored, ...], cards: dict[str, str]) -> str:
    cells = "".join(f"<div><b>{number(one.value)}</b>{cards[one.uid]}</div>" for one in found)
    return f"<h3>{title}</h3>{cells}"


def _card(scored: Scored, shards: dict) -> str:
    """Picture and text of a sample, and where it lies."""
    where = f'<span class="key">{escape(scored.key)}, shard {escape(scored.shard)}</span>'
    shard = shards.get(scored.shard)
    if shard is None:
        return where
    index = read_index(shard)
    rows = index.filter(pc.equal(index["uid"], pa.scalar(scored.uid, pa.string()))).to_pylist()
    try:
        sample = read_sample(shard, rows[0]) if rows else None
    except DataError:
        sample = None
    if sample is None:
        return f'<span class="bad">gone from its shard</span> {where}'
    picture = thumbnail(sample.images[0].data, SIDE) if sample.images else ""
    text = " ".join(part.text for part in sample.parts if isinstance(part, Text))
    more = " ..." if len(text) > MAX_CHARS else ""
    return f"{picture}{escape(text[:MAX_CHARS])}{more}<br>{where}"
