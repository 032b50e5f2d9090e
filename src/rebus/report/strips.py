"""Rows and grids of pairs: a small picture, a label above the caption, and a mark where the caption is known wrong."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from rebus.report.gather import Artifact, Way, read_planted
from rebus.report.pictures import Example, load_examples

SMALL = 72
"""Pixels of a picture in a grid: about 3 kB each on the page."""


@dataclass(frozen=True)
class Source:
    """Where the pairs of a scores or selection folder lie. swapped: uids whose caption was planted."""

    shards: list[Artifact]
    swapped: frozenset[str] = field(default_factory=frozenset)

    def load(self, uids: list[str], stems: set[str] | None = None) -> dict[str, Example]:
        return load_examples(uids, self.shards, stems=stems, side=SMALL)


def source_of(way: Way, artifact: Artifact) -> Source:
    shards = way.inputs_of(artifact, "shards")
    planted = [read_planted(one) for one in shards]
    return Source(shards, frozenset(uid for found in planted if found for uid in found.swapped))


def strip(source: Source, uids: Sequence[str], labels: Sequence[str], title: str, stems: set[str] | None = None) -> str:
    """A row of pairs, each under its label."""
    examples = source.load(list(uids), stems)
    cells = "".join(cell(source, examples, uid, label) for uid, label in zip(uids, labels, strict=True))
    return f'<p class="note">{escape(title)}</p><ol class="strip">{cells}</ol>'


def cell(source: Source, examples: dict[str, Example], uid: str, label: str) -> str:
    mark = ' <b class="flag">swapped</b>' if uid in source.swapped else ""
    example = examples.get(uid)
    picture = f'<img src="{example.picture}" alt="" loading="lazy">' if example and example.picture else "no picture"
    caption = escape(example.text) if example else "gone from its shard"
    label = f'<span class="q">{escape(label)}</span>' if label else ""
    return f'<li>{picture}{label}<span class="caption">{caption}</span>{mark}</li>'
