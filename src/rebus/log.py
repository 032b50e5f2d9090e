"""What a person sees: one console, progress bars on long work, a closing table. Everything goes to standard error
except results, so that output can be piped."""

import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

Item = TypeVar("Item")

console = Console(stderr=True, soft_wrap=False)
output = Console()


def say(message: str) -> None:
    """One line for the person who waits; whole in a log, where no terminal breaks it."""
    console.print(message, highlight=False, soft_wrap=not console.is_terminal)


def printable(text: str, kept: str = "") -> str:
    """Text of strangers for a terminal: characters that could command it become replacement marks, line breaks too.

    kept: of those, what stays. White space of other scripts and what joins emoji command nothing.
    """
    return "".join("\ufffd" if _commands(one) and one not in kept else one for one in text)


def _commands(character: str) -> bool:
    """Controls, line and paragraph breaks, halves of surrogates, and what turns the direction of writing."""
    is_control = unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
    return is_control or "\u202a" <= character <= "\u202e" or "\u2066" <= character <= "\u2069"


def write_pieces(pieces: Iterable[str]) -> None:
    """An answer on standard output as it is made, then a line break: a model can make escape sequences."""
    for piece in pieces:
        sys.stdout.write(printable(piece, kept="\n\t"))
        sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()


def progress_bar() -> Progress:
    """A progress bar with counts and both clocks; silent where nobody watches (no terminal)."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal or "REBUS_QUIET" in os.environ,
    )


def track(items: Iterable[Item], description: str, total: int | None = None) -> Iterator[Item]:
    """Yields the items under a progress bar."""
    with progress_bar() as bar:
        task = bar.add_task(description, total=total if total is not None else _length(items), note="")
        for item in items:
            yield item
            bar.advance(task)


def _length(items: Iterable[Item]) -> int | None:
    return len(items) if isinstance(items, Sequence) else None


def duration(seconds: float) -> str:
    """90 -> 1 min 30 s."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """The closing table of a stage: first column left, the others right."""
    output.print(f"\n{title}", style="bold", markup=False, highlight=False)  # a table's own title wraps at its width
    table = Table(header_style="bold", pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(value if isinstance(value, str) else f"{value:,}" for value in row))
    output.print(table)
