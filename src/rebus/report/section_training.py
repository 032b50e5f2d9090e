"""The page's section on training: how the loss fell, at which rate and norm, how fast, and what the time went into."""

import math
from collections.abc import Callable, Iterable, Sequence
from html import escape

import numpy as np

from rebus.log import duration
from rebus.report.curves import Point, Row, Series, curves, legend, split_bar
from rebus.report.gather import Artifact, Way
from rebus.report.results import evenly, metrics_of
from rebus.training.metrics import StepRow
from rebus.training.summary import mean_mfu, phase_shares, rate

MAX_DOTS = 1_200
"""Steps that are drawn; more would lie on one another."""
MAX_POINTS = 400
"""Of a line: about as many as its panel has view box units."""

PART_STYLES = ("line-a", "line-b", "line-c", "line-d", "line-e")


def training_section(way: Way) -> str:
    figures = [_figures(checkpoint) for checkpoint in way.of_kind("checkpoint") if metrics_of(checkpoint)]
    return "".join(figures)


def _figures(checkpoint: Artifact) -> str:
    rows = metrics_of(checkpoint)
    window = smoothing_window(len(rows))
    left = _learning(rows, window)
    right = _gradients(rows, window) + _speed(rows, window)
    return (
        f"<h3>{escape(checkpoint.name)}</h3>"
        f'<p class="note">{_note(rows, window)}</p>{_time(rows)}<div class="grid"><figure>{left}</figure>'
        f"<figure>{right}</figure></div>"
    )


def _note(rows: Sequence[StepRow], window: int) -> str:
    seconds = sum(row.step_seconds for row in rows)
    speed = sum(row.num_tokens for row in rows) / max(seconds, 1e-9)
    dots = "each step" if len(rows) <= MAX_DOTS else f"{MAX_DOTS:,} of the steps"
    smooth = [mean for _, mean in _smooth(rows, window)]
    line = (
        f"Lines: means over {window} steps, the loss weighted by supervised tokens"
        if window > 1
        else "Lines join the steps"
    )
    mfu, skipped = mean_mfu(rows), sum(row.is_skipped for row in rows)
    return (
        f"{rows[-1].step + 1:,} steps in {duration(seconds)}, {rows[-1].tokens_total:,} tokens, {speed:,.0f} tokens/s"
        f"{f', MFU {mfu:.1%}' if mfu is not None else ''}. Dots: {dots}. {line}; {smooth[0]:.2f} at first, "
        f"{smooth[-1]:.2f} at last.{f' Steps not taken: {skipped:,}.' if skipped else ''}"
    )


def _learning(rows: Sequence[StepRow], window: int) -> str:
    """Loss, held-out loss and learning rate over trained tokens."""
    dots = [(row.tokens_total, row.loss) for row in evenly(rows, MAX_DOTS)]
    heldout = [(row.tokens_total, row.heldout) for row in rows if row.heldout is not None]
    skipped = [row.tokens_total for row in evenly([row for row in rows if row.is_skipped], MAX_POINTS)]
    loss = Row(
        "loss (nats/token)",
        [
            Series(dots, "dots", "dots"),
            Series(evenly(_smooth(rows, window), MAX_POINTS), "line-a"),
            Series(heldout, "heldout", "marks"),
        ],
        height=180,
        from_zero=False,
        marks=skipped,
    )
    rates = Row("lr", [Series(_points(rows, lambda row: row.lr, 1), "line-b")], height=44)
    keys = [("dots", "a step"), ("line-a", "smoothed")]
    keys += [("heldout", "held out")] if heldout else []
    keys += [("skipped", "not taken")] if skipped else []
    title = "Loss over trained tokens, with the learning rate below"
    return legend(keys) + curves([loss, rates], x_label="trained tokens", title=title)


def _gradients(rows: Sequence[StepRow], window: int) -> str:
    """The gradient norm of each part before clipping; of all where the rows do not tell parts apart."""
    parts = sorted({part for row in rows for part in row.grad_norms})
    series = [
        Series(_points(rows, _norm_of(part), window), PART_STYLES[place % len(PART_STYLES)], name=part)
        for place, part in enumerate(parts)
    ] or [Series(_points(rows, lambda row: row.grad_norm, window), "line-a", name="all parts")]
    row = Row("gradient norm", series, height=84)
    if not any(math.isfinite(y) for one in series for _, y in one.points):
        return ""
    keys = legend([(one.style, f"gradient norm, {one.name}") for one in series])
    return keys + curves([row], x_label="trained tokens", title="Gradient norm of each part over trained tokens")


def _norm_of(part: str) -> Callable[[StepRow], float]:
    return lambda row: row.grad_norms.get(part, math.nan)


def _speed(rows: Sequence[StepRow], window: int) -> str:
    tokens = [
        Series(_points(rows, lambda row: row.tokens_per_second, window), "line-a"),
        Series(_points(rows, lambda row: row.num_supervised / max(row.step_seconds, 1e-9), window), "line-b"),
    ]
    mfu = _points(rows, lambda row: math.nan if row.mfu is None else 100 * row.mfu, window)
    panels = [Row("tokens/s", tokens, height=70), Row("MFU %", [Series(mfu, "line-c")], height=50)]
    keys = legend([("line-a", "tokens/s"), ("line-b", "supervised tokens/s")])
    return keys + curves(panels, x_label="trained tokens", title="Speed over trained tokens")


def _time(rows: Sequence[StepRow]) -> str:
    """What the mean step was spent on."""
    shares = [(phase, share) for phase, share in phase_shares(rows).items() if share >= 0.001]
    if not shares:
        return ""
    step = sum(row.step_seconds for row in rows) / len(rows)
    keys = "".join(
        f'<span><svg class="key" viewBox="0 0 22 12" aria-hidden="true"><rect width="22" height="12" '
        f'class="phase-{phase}"/></svg>{phase} {share:.1%}</span>'
        for phase, share in shares
    )
    return (
        f'<p class="note">A step of {rate(1e3 * step)} ms on average:</p>'
        f'{split_bar([(f"phase-{phase}", phase, share) for phase, share in shares])}<p class="legend">{keys}</p>'
    )


def _smooth(rows: Sequence[StepRow], window: int) -> list[Point]:
    kept = [row for row in rows if math.isfinite(row.loss)] or list(rows)
    means = moving_mean([row.loss for row in kept], [max(row.num_supervised, 1) for row in kept], window)
    return [(row.tokens_total, mean) for row, mean in zip(kept, means, strict=True)]


def _points(rows: Sequence[StepRow], read: Callable[[StepRow], float], window: int) -> list[Point]:
    """A line's points: what is not finite left out, smoothed, thinned."""
    kept = [(row.tokens_total, read(row)) for row in rows if math.isfinite(read(row))]
    means = moving_mean([y for _, y in kept], [1.0] * len(kept), window)
    return evenly([(x, mean) for (x, _), mean in zip(kept, means, strict=True)], MAX_POINTS)


def smoothing_window(num_steps: int) -> int:
    """An odd number of steps, about a twentieth of the run, at least 1."""
    return num_steps // 20 // 2 * 2 + 1


def moving_mean(values: Sequence[float], weights: Iterable[float], window: int) -> list[float]:
    """Weighted mean over `window` neighbours, centred; at the ends over those that exist."""
    weight = np.asarray(list(weights), dtype=np.float64)
    sums, totals = (np.concatenate([[0.0], np.cumsum(one)]) for one in (weight * np.asarray(values), weight))
    places, half = np.arange(len(weight)), window // 2
    first, end = np.maximum(places - half, 0), np.minimum(places + half + 1, len(weight))
    return ((sums[end] - sums[first]) / (totals[end] - totals[first])).tolist()
