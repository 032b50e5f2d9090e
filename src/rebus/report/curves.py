"""Lines over the steps of a run: one panel above another on a common axis, drawn as the other figures are."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from rebus.report.figures import BOTTOM, TOP, Panel, axes, line, nice_ticks, svg

GAP = 20
"""Between panels, in view box units."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """What is drawn into a row. style: a CSS class of style.py; kind `dots` and `marks` are not joined."""

    points: Sequence[Point]
    style: str
    kind: str = "line"
    name: str = ""


@dataclass(frozen=True)
class Row:
    """One panel. from_zero: its axis begins at zero. marks: places on the x axis where a tick stands on the floor."""

    label: str
    series: Sequence[Series]
    height: float = 70
    from_zero: bool = True
    marks: Sequence[float] = field(default_factory=tuple)


def curves(rows: Sequence[Row], *, x_label: str, title: str) -> str:
    """The rows one above another; rows without a finite point are left out, and what is not finite in others."""
    shown = [row for row in rows if any(_finite(series) for series in row.series)]
    end = max(x for row in shown for series in row.series for x, _ in _finite(series))
    x_ticks = [tick for tick in nice_ticks(0, end) if tick <= end * 1.01]
    body, top = "", float(TOP)
    for number, row in enumerate(shown):
        body += _row(row, top, (0.0, end * 1.01 or 1.0), x_ticks, x_label if number == len(shown) - 1 else "")
        top += row.height + GAP
    return svg(top - GAP + BOTTOM, body, title)


def _row(row: Row, top: float, x_range: tuple[float, float], x_ticks: Sequence[float], x_label: str) -> str:
    values = [y for series in row.series for _, y in _finite(series)]
    count = max(1, round(row.height / 40))
    ticks = nice_ticks(min(0.0, *values) if row.from_zero else min(values), max(values), count)
    if ticks[0] == ticks[-1]:
        ticks = [ticks[0], ticks[0] + 1.0]
    panel = Panel(x_range, (ticks[0], ticks[-1]), top, row.height)
    body = axes(panel, x_ticks, ticks, x_label, row.label)
    body += "".join(_series(panel, series) for series in row.series)
    floor = top + row.height
    return body + "".join(line(panel.place_x(x), floor - 9, panel.place_x(x), floor, "skipped") for x in row.marks)


def _series(panel: Panel, series: Series) -> str:
    points = _finite(series)
    if series.kind == "line":
        return f'<polyline points="{" ".join(panel.place(x, y) for x, y in points)}" class="{series.style}"/>'
    places = ((panel.place_x(x), panel.place_y(y)) for x, y in points)
    radius = 1.7 if series.kind == "dots" else 3.6
    circles = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}"/>' for x, y in places)
    return f'<g class="{series.style}">{circles}</g>'


def _finite(series: Series) -> list[Point]:
    return [(x, y) for x, y in series.points if math.isfinite(y)]


def legend(series: Sequence[tuple[str, str]]) -> str:
    """(CSS class, words) -> a line of keys: short strokes or dots as they are drawn."""
    keys = "".join(
        f'<span><svg class="key" viewBox="0 0 22 12" aria-hidden="true">{_key(style)}</svg>{escape(name)}</span>'
        for style, name in series
    )
    return f'<p class="legend">{keys}</p>'


def _key(style: str) -> str:
    if style in ("dots", "heldout"):
        return f'<g class="{style}"><circle cx="11" cy="6" r="{3.6 if style == "heldout" else 2.2}"/></g>'
    if style == "skipped":
        return line(11, 1, 11, 11, style)
    return f'<polyline points="0,6 22,6" class="{style}"/>'


def split_bar(shares: Sequence[tuple[str, str, float]]) -> str:
    """A bar as wide as the page lets it be. shares: (CSS class, name, share of 0..1), which add up to at most 1."""
    body, start = '<rect x="0" y="3" width="100%" height="16" class="trough"/>', 0.0
    for style, name, share in shares:
        place = f'x="{100 * start:.2f}%" y="3" width="{100 * share:.2f}%" height="16"'
        body += f'<rect {place} class="{style}"><title>{escape(name)} {share:.1%}</title></rect>'
        start += share
    return f'<svg class="bar" width="100%" height="22" role="img" aria-label="time of a step">{body}</svg>'
