"""What a person sees while a run trains: one panel that stays in its place, or a plain line now and then where there
is no terminal. Both are silent under REBUS_QUIET, and on all ranks but the first."""

import itertools
import math
import os
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from types import TracebackType

from rich.console import RenderableType
from rich.live import Live
from rich.panel import Panel as Frame
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rebus.log import console, duration, say
from rebus.training.metrics import StepRow
from rebus.training.summary import mean_mfu, phase_shares, rate

RECENT = 20
"""Steps that speeds and shares are taken over: enough to be calm, few enough to show a change."""

PLAIN_SECONDS = 30.0
REFRESH_PER_SECOND = 2
"""A panel drawn twice a second costs a training thread 0.5% of its time."""

STYLES = {
    "wait": "red",
    "transfer": "yellow",
    "forward": "blue",
    "backward": "cyan",
    "communication": "magenta",
    "optimizer": "green",
    "saving": "bright_green",
    "other": "bright_black",
}
SPARKS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Standing:
    """What the panel shows beside the steps. last_state: steps of the last whole state; num_damaged: documents."""

    num_steps: int
    title: str
    place: str
    last_state: int | None = None
    num_damaged: int = 0


class Panel:
    """Shows a run while it is entered.

    title: what trains, and where to. place: processes, precision, device. rows: of earlier starts. `say` (log.py) and
    anything printed meanwhile appear above it.
    """

    def __init__(
        self, num_steps: int, *, title: str, place: str, rows: Sequence[StepRow] = (), is_main: bool = True
    ) -> None:
        self._standing = Standing(num_steps, title, place)
        self._history = History(rows)
        is_shown = is_main and "REBUS_QUIET" not in os.environ
        self._is_plain = is_shown and not console.is_terminal
        self._said = time.monotonic()
        self._live = Live(
            get_renderable=self._draw, console=console, refresh_per_second=REFRESH_PER_SECOND, transient=True
        )
        self._is_live = is_shown and console.is_terminal

    def __enter__(self) -> "Panel":
        if self._is_live:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._is_live:
            self._live.stop()

    def update(self, row: StepRow, *, last_state: int | None = None, num_damaged: int = 0) -> None:
        """After a step. It only notes; the panel is drawn by its own clock."""
        self._history.add(row)
        state = self._standing.last_state if last_state is None else last_state
        self._standing = replace(self._standing, last_state=state, num_damaged=num_damaged)
        if self._is_plain and (time.monotonic() - self._said > PLAIN_SECONDS):
            self._said = time.monotonic()
            say(plain_line(self._standing, self._history))

    def say(self, message: str) -> None:
        """One line above the panel."""
        say(message)

    def _draw(self) -> RenderableType:
        return draw(self._standing, self._history)


class History:
    """What the panel remembers of a run: recent rows, losses thinned to a curve, the last held-out loss."""

    SIZE = 512

    def __init__(self, rows: Iterable[StepRow] = ()) -> None:
        self.recent: deque[StepRow] = deque(maxlen=RECENT)
        self.losses: list[float] = []
        self.heldout: StepRow | None = None
        self.num_skipped = 0
        self._stride, self._sums = 1, [0.0, 0.0]
        for row in rows:
            self.add(row)

    def add(self, row: StepRow) -> None:
        self.recent.append(row)
        self.num_skipped += row.is_skipped
        if row.heldout is not None:
            self.heldout = row
        if math.isfinite(row.loss):
            self._sums = [self._sums[0] + row.loss, self._sums[1] + 1]
        if self._sums[1] >= self._stride:
            self.losses.append(self._sums[0] / self._sums[1])
            self._sums = [0.0, 0.0]
        if len(self.losses) >= 2 * self.SIZE:  # every second point goes into its neighbour
            self.losses = means(self.losses, self.SIZE)
            self._stride *= 2


def means(values: Sequence[float], count: int) -> list[float]:
    """At most `count` means over neighbours, of equally many values to rounding."""
    count = min(count, len(values))
    bounds = [round(place * len(values) / count) for place in range(count + 1)] if count else []
    return [sum(values[first:end]) / (end - first) for first, end in itertools.pairwise(bounds) if end > first]


def sparkline(values: Sequence[float], width: int) -> str:
    """One letter for each of at most `width` stretches, from the least to the greatest."""
    points = means(values, width)
    if not points:
        return ""
    low, high = min(points), max(points)
    scale = (len(SPARKS) - 1) / (high - low) if high > low else 0.0
    return "".join(SPARKS[round((point - low) * scale)] for point in points)


def seconds_left(standing: Standing, history: History) -> float:
    """At the pace of the recent steps."""
    row = history.recent[-1]
    pace = sum(one.step_seconds for one in history.recent) / len(history.recent)
    return pace * max(0, standing.num_steps - row.step - 1)


def draw(standing: Standing, history: History) -> RenderableType:
    """The panel as it stands, for 80 columns and more."""
    if not history.recent:
        return Frame(Text("the first step is on its way"), title=Text(standing.title), title_align="left")
    row, rows = history.recent[-1], list(history.recent)
    lines = Table.grid(padding=(0, 2), expand=True)
    lines.add_column(no_wrap=True, style="dim")
    lines.add_column(ratio=1, overflow="fold")
    lines.add_row("step", _progress(standing, history))
    lines.add_row("loss", _losses(row, history))
    lines.add_row("learning", f"lr {row.lr:.2e}   gradient norm {row.grad_norm:.3g}   epoch {row.epoch:.2f}")
    lines.add_row("tokens/s", _speed(rows))
    lines.add_row("machine", _machine(row, rows))
    lines.add_row("time", _split(rows))
    lines.add_row("", _legend(rows))
    lines.add_row("run", _fate(standing, history))
    lines.add_row("on", standing.place)
    return Frame(lines, title=Text(standing.title), title_align="left", border_style="dim")


def _progress(standing: Standing, history: History) -> RenderableType:
    done = history.recent[-1].step + 1
    line = Table.grid(padding=(0, 2), expand=True)
    line.add_column(no_wrap=True)
    line.add_column(ratio=1)
    line.add_column(no_wrap=True)
    line.add_row(
        f"{done:,} of {standing.num_steps:,}",
        ProgressBar(total=standing.num_steps, completed=done),
        f"{duration(seconds_left(standing, history))} left",
    )
    return line


def _losses(row: StepRow, history: History) -> Text:
    text = Text(f"{row.loss:.4f}  ", style="bold")
    text.append(sparkline(history.losses, 24), style="cyan not bold")
    if history.heldout is not None:
        text.append(f"  held out {history.heldout.heldout:.4f}", style="bold")
        text.append(f" at step {history.heldout.step + 1:,}", style="not bold dim")
    return text


def _speed(rows: Sequence[StepRow]) -> str:
    seconds = max(sum(row.step_seconds for row in rows), 1e-9)
    all_of, supervised, visual, samples = (
        rate(sum(getattr(row, name) for row in rows) / seconds)
        for name in ("num_tokens", "num_supervised", "num_visual", "num_documents")
    )
    return f"{all_of}   supervised {supervised}   visual {visual}   samples/s {samples}"


def _machine(row: StepRow, rows: Sequence[StepRow]) -> str:
    mfu = mean_mfu(rows)
    known = f"MFU {mfu:.1%}   " if mfu is not None else ""
    return f"{known}peak memory {row.memory_gb:.1f} GB"


def _split(rows: Sequence[StepRow]) -> RenderableType:
    """A bar as wide as its cell, each phase in its colour and in the legend's order."""
    shares = {phase: share for phase, share in phase_shares(rows).items() if share >= 0.005}
    bar = Table.grid(expand=True)
    cells = []
    for phase, share in shares.items():
        bar.add_column(ratio=max(1, round(1000 * share)), no_wrap=True, overflow="crop")
        cells.append(Text("█" * 200, style=STYLES[phase], overflow="crop", no_wrap=True))
    bar.add_row(*cells)
    return bar


def _legend(rows: Sequence[StepRow]) -> Text:
    mean = sum(row.step_seconds for row in rows) / len(rows)
    text = Text(f"{mean:.2f} s: ")
    for phase, share in phase_shares(rows).items():
        if share >= 0.005:
            text.append("■", style=STYLES[phase])
            text.append(f"{phase} {share:.0%}  ")
    return text


def _fate(standing: Standing, history: History) -> str:
    state = f"state of step {standing.last_state:,}" if standing.last_state else "no state saved yet"
    return f"{state}   steps not taken: {history.num_skipped:,}   damaged documents: {standing.num_damaged:,}"


def plain_line(standing: Standing, history: History) -> str:
    """The same in one line, for a log file."""
    row, rows = history.recent[-1], list(history.recent)
    seconds, mfu = max(sum(one.step_seconds for one in rows), 1e-9), mean_mfu(rows)
    parts = [
        f"step {row.step + 1:,} of {standing.num_steps:,}",
        f"loss {row.loss:.4f}",
        f"held out {history.heldout.heldout:.4f}" if history.heldout is not None else "",
        f"lr {row.lr:.2e}",
        f"gradient norm {row.grad_norm:.3g}",
        f"{rate(sum(one.num_tokens for one in rows) / seconds)} tokens/s",
        f"MFU {mfu:.1%}" if mfu is not None else "",
        f"waits {phase_shares(rows)['wait']:.0%}",
        f"{row.memory_gb:.1f} GB",
        f"{history.num_skipped:,} steps not taken" if history.num_skipped else "",
        f"{standing.num_damaged:,} damaged documents" if standing.num_damaged else "",
        f"{duration(seconds_left(standing, history))} left",
    ]
    return "  ".join(part for part in parts if part)
