"""The closing table of a run: what was learnt, and what the time went into."""

import math
from collections.abc import Sequence

from rebus.log import duration, show_table
from rebus.training.metrics import StepRow
from rebus.training.timing import PHASES


def show_summary(
    rows: Sequence[StepRow], *, trains: Sequence[str], num_trainable: int, num_damaged: int, wall_seconds: float
) -> None:
    """Prints what a run came to. rows: all of its steps, whichever start took them; not empty. num_damaged: documents
    that were left out. wall_seconds: of this start alone, with loading and saving."""
    show_table(
        f"trained {', '.join(trains)} for {rows[-1].step + 1:,} steps",
        ["", "value"],
        [
            ("trainable parameters", f"{num_trainable:,}"),
            *summary_rows(rows),
            ("documents left out as damaged", f"{num_damaged:,}"),
            ("wall clock of this start", duration(wall_seconds)),
        ],
    )


def summary_rows(rows: Sequence[StepRow]) -> list[tuple[str, str]]:
    """Name and value of each line that the steps' rows tell."""
    seconds = max(sum(row.step_seconds for row in rows), 1e-9)
    shares = phase_shares(rows).items()
    return [
        ("tokens", f"{rows[-1].tokens_total:,}"),
        ("epochs", f"{rows[-1].epoch:.2f}"),
        *_losses(rows),
        ("steps not taken", f"{sum(row.is_skipped for row in rows):,}"),
        *_speeds(rows, seconds),
        ("peak memory", f"{max(row.memory_gb for row in rows):.2f} GB"),
        ("time in steps", duration(seconds)),
        *((f"  of it {phase}", f"{share:.1%}") for phase, share in shares if share >= 0.001),
    ]


def _losses(rows: Sequence[StepRow]) -> list[tuple[str, str]]:
    tenth = max(len(rows) // 10, 1)
    heldout = [row for row in rows if row.heldout is not None]
    best = min(heldout, key=lambda row: row.heldout or 0, default=None)
    lines = [
        ("loss, first tenth of steps", f"{mean_loss(rows[:tenth]):.3f}"),
        ("loss, last tenth of steps", f"{mean_loss(rows[-tenth:]):.3f}"),
    ]
    if best is not None:
        lines.append(("held-out loss, last", f"{heldout[-1].heldout:.3f}"))
        lines.append((f"held-out loss, best (after step {best.step + 1:,})", f"{best.heldout:.3f}"))
    return lines


def _speeds(rows: Sequence[StepRow], seconds: float) -> list[tuple[str, str]]:
    per_second = {
        "tokens/s": sum(row.num_tokens for row in rows),
        "supervised tokens/s": sum(row.num_supervised for row in rows),
        "visual tokens/s": sum(row.num_visual for row in rows),
        "samples/s": sum(row.num_documents for row in rows),
    }
    lines = [(name, rate(count / seconds)) for name, count in per_second.items()]
    mfu = mean_mfu(rows)
    return lines if mfu is None else [*lines, ("MFU", f"{mfu:.1%}")]


def rate(value: float) -> str:
    """12345.6 -> 12,346; 3.21 -> 3.2."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def mean_loss(rows: Sequence[StepRow]) -> float:
    """Over steps, those aside whose loss is not finite; nan where there are none."""
    losses = [row.loss for row in rows if math.isfinite(row.loss)]
    return sum(losses) / len(losses) if losses else math.nan


def mean_mfu(rows: Sequence[StepRow]) -> float | None:
    """MFU over the time of all steps whose MFU is known: not a mean over steps, of which some are short."""
    known = [row for row in rows if row.mfu is not None]
    seconds = sum(row.step_seconds for row in known)
    return sum((row.mfu or 0) * row.step_seconds for row in known) / seconds if seconds else None


def phase_shares(rows: Sequence[StepRow]) -> dict[str, float]:
    """Share of the steps' time in each of PHASES, in their order."""
    seconds = max(sum(row.step_seconds for row in rows), 1e-9)
    return {phase: sum(row.phases.get(phase, 0.0) for row in rows) / seconds for phase in PHASES}
