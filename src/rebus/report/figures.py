"""Inline SVG by own code. Colours are CSS classes, so that light and dark are the page's business.

Bars stretch with the page (lengths in percent); curves and histograms keep their shape (a fixed view box).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 460, 50, 14, 12, 42
"""Of a curve or histogram, in view box units: 460 on a phone 343 px wide leaves 13-unit letters 9.7 px high."""


@dataclass(frozen=True)
class Panel:
    """A plotting area: data ranges and where it stands in the view box."""

    x: tuple[float, float]
    y: tuple[float, float]
    top: float
    height: float

    def place(self, x: float, y: float) -> str:
        return f"{self.place_x(x):.1f},{self.place_y(y):.1f}"

    def place_x(self, x: float) -> float:
        low, high = self.x
        return LEFT + (x - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def place_y(self, y: float) -> float:
        low, high = self.y
        return self.top + self.height * (1 - (y - low) / (high - low))


@dataclass(frozen=True)
class Outline:
    """One step outline of a histogram. heights: one a bin. style: a CSS class."""

    name: str
    style: str
    heights: Sequence[float]


def nice_ticks(low: float, high: float, count: int = 5, *, whole: bool = False) -> list[float]:
    """About `count` round numbers (1, 2, 2.5 or 5 times a power of ten) that cover low..high. whole: integers."""
    if not high > low:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * 0.999)
    if whole:
        step = max(1, math.ceil(step))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def number(value: float) -> str:
    """A number as people write it: 12,345 or 0.37 or 2.5e-4."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) < 1e-3:
        return f"{value:.1e}".replace("e-0", "e-").replace(".0e", "e")
    return f"{value:.3g}"


def tick_label(value: float) -> str:
    """As `number`, with k and M from ten thousand on, so that labels do not touch."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if abs(value) >= 1e4 else number(value)


def svg(height: float, body: str, title: str) -> str:
    label = escape(title, quote=True)
    return f'<svg class="plot" viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{label}">{body}</svg>'


def text(x: float, y: float, words: str, anchor: str = "middle", style: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{style}">{escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{style}"/>'


def axes(panel: Panel, x_ticks: Sequence[float], y_ticks: Sequence[float], x_label: str, y_label: str) -> str:
    """Grid, tick labels and axis titles. No x_label: the panel below carries the x axis."""
    bottom = panel.top + panel.height
    parts = [line(LEFT, panel.place_y(y), WIDTH - RIGHT, panel.place_y(y), "grid") for y in y_ticks]
    parts += [text(LEFT - 6, panel.place_y(y) + 4, tick_label(y), "end") for y in y_ticks]
    parts.append(line(LEFT, bottom, WIDTH - RIGHT, bottom, "axis"))
    if x_label:
        parts += [line(panel.place_x(x), bottom, panel.place_x(x), bottom + 4, "axis") for x in x_ticks]
        parts += [text(panel.place_x(x), bottom + 17, tick_label(x)) for x in x_ticks]
        parts.append(text((LEFT + WIDTH - RIGHT) / 2, bottom + 36, x_label, style="label"))
    middle = panel.top + panel.height / 2
    parts.append(
        f'<text x="12" y="{middle:.1f}" text-anchor="middle" class="label" '
        f'transform="rotate(-90 12 {middle:.1f})">{escape(y_label)}</text>'
    )
    return "".join(parts)


def histogram(
    edges: Sequence[float],
    outlines: Sequence[Outline],
    *,
    x_label: str,
    y_label: str,
    threshold: float | None = None,
    height: float = 230,
) -> str:
    """Step outlines over common bins; `threshold` is marked with its value. edges: one more than heights."""
    peak = max((max(outline.heights) for outline in outlines), default=0) or 1
    y_ticks = nice_ticks(0, peak, 5, whole=all(h == int(h) for outline in outlines for h in outline.heights))
    head = 22 if threshold is not None else 0
    panel = Panel((edges[0], edges[-1]), (0, y_ticks[-1]), TOP + head, height - TOP - BOTTOM - head)
    x_ticks = [tick for tick in nice_ticks(edges[0], edges[-1]) if edges[0] <= tick <= edges[-1]]
    body = axes(panel, x_ticks, y_ticks, x_label, y_label)
    body += "".join(_step_path(panel, edges, outline) for outline in outlines)
    if threshold is not None and edges[0] <= threshold <= edges[-1]:
        x = panel.place_x(threshold)
        body += line(x, panel.top - 6, x, panel.top + panel.height, "threshold")
        anchor = "start" if x < WIDTH * 0.3 else "end" if x > WIDTH * 0.7 else "middle"
        body += text(x, panel.top - 10, f"threshold {number(threshold)}", anchor, "label")
    return svg(height, body, f"Histogram of {x_label}")


def _step_path(panel: Panel, edges: Sequence[float], outline: Outline) -> str:
    points = [panel.place(edges[0], 0)]
    for left, right, bin_height in zip(edges, edges[1:], outline.heights, strict=False):
        points += [panel.place(left, bin_height), panel.place(right, bin_height)]
    points.append(panel.place(edges[-1], 0))
    return f'<polyline points="{" ".join(points)}" class="{outline.style}"/>'


def columns(heights: Sequence[float], *, x_label: str, y_label: str, height: float = 200) -> str:
    """One thin column a pack, 0 to 100 percent; heights are shares 0..1."""
    panel = Panel((0, len(heights)), (0, 100), TOP, height - TOP - BOTTOM)
    ticks = [tick for tick in nice_ticks(0, len(heights), whole=True) if tick <= len(heights)]
    body = axes(panel, ticks, [0, 25, 50, 75, 100], x_label, y_label)
    is_dense = len(heights) > 120  # then columns touch, and their edges must not be blurred into stripes
    gap, style = (0, "bar-a crisp") if is_dense else (0.15, "bar-a")
    for index, share in enumerate(heights):
        x, right = panel.place_x(index + gap / 2), panel.place_x(index + 1 - gap / 2)
        y, bottom = panel.place_y(100 * share), panel.place_y(0)
        place = f'x="{x:.2f}" y="{y:.1f}" width="{right - x:.2f}" height="{bottom - y:.1f}"'
        body += f'<rect {place} class="{style}"/>'
    return svg(height, body, f"{y_label} of each pack")


def bar(
    share: float, *, style: str = "bar-a", interval: tuple[float, float] | None = None, mark: float | None = None
) -> str:
    """A horizontal bar of 0..1 of the width it is given, with a 95% whisker and a marked place (chance)."""
    body = '<rect x="0" y="3" width="100%" height="16" class="trough"/>'
    body += f'<rect x="0" y="3" width="{100 * min(max(share, 0), 1):.2f}%" height="16" class="{style}"/>'
    if mark is not None:
        body += f'<line x1="{100 * mark:.2f}%" y1="0" x2="{100 * mark:.2f}%" y2="22" class="chance"/>'
    if interval is not None:
        low, high = (f"{100 * min(max(end, 0), 1):.2f}%" for end in interval)
        body += f'<line x1="{low}" y1="11" x2="{high}" y2="11" class="whisker"/>'
        body += "".join(f'<line x1="{x}" y1="6" x2="{x}" y2="16" class="whisker"/>' for x in (low, high))
    return f'<svg class="bar" width="100%" height="22" aria-hidden="true">{body}</svg>'


def two_part_bar(left: float, dropped: float) -> str:
    """What a rule left and, hatched behind it, what it dropped; both as shares 0..1 of the whole."""
    body = '<rect x="0" y="3" width="100%" height="16" class="trough"/>'
    body += f'<rect x="0" y="3" width="{100 * left:.2f}%" height="16" class="bar-a"/>'
    if dropped > 0:
        body += f'<rect x="{100 * left:.2f}%" y="3" width="{100 * dropped:.2f}%" height="16" class="bar-dropped"/>'
    return f'<svg class="bar" width="100%" height="22" aria-hidden="true">{body}</svg>'
