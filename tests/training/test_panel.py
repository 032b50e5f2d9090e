"""The live panel and the closing table: every number is there, at any width, and nobody's words are lost."""

import io
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from rebus import log
from rebus.training import panel as panel_module
from rebus.training.metrics import StepRow
from rebus.training.panel import SPARKS, History, Panel, Standing, draw, means, plain_line, seconds_left, sparkline
from rebus.training.summary import mean_loss, mean_mfu, phase_shares, summary_rows


def row(step: int, loss: float = 2.0, **changes) -> StepRow:
    phases = {"wait": 0.2, "forward": 0.6, "backward": 1.2}
    values = {"phases": phases, "mfu": 0.4, "memory_gb": 61.24, **changes}
    return StepRow(step, step / 10, loss, 0.83, 1e-3, 1000, 300, 600, 8, 8, 1000 * (step + 1), 2.0, **values)


def shown(width: int, rows: list[StepRow], standing: Standing) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(draw(standing, History(rows)))
    return console.file.getvalue()


STANDING = Standing(100, "connector, lora -> runs/sft", "2 processes, bf16", last_state=10, num_damaged=3)


@pytest.mark.parametrize("width", [80, 120])
def test_every_number_is_shown_at_any_width(width: int):
    rows = [row(step, 4 - step / 10, heldout=2.75 if step == 9 else None, is_skipped=step == 3) for step in range(20)]
    text = shown(width, rows, STANDING)
    assert max(map(len, text.splitlines())) == width
    flat = " ".join(text.replace("│", " ").split())
    for words in (
        *("20 of 100", "2 min 40 s left", "2.1000", "held out 2.7500 at step 10", "lr 1.00e-03", "gradient norm 0.83"),
        *("500 supervised 150 visual 300 samples/s 4.0", "MFU 40.0%", "61.2 GB", "■wait 10%", "■backward 60%"),
        *("state of step 10", "steps not taken: 1", "damaged documents: 3", "2 processes, bf16", "runs/sft"),
    ):
        assert words in flat, words
    assert "…" not in text
    assert SPARKS[-1] in text
    assert "transfer" not in text, "a phase that took no time has no place"


def test_it_can_be_drawn_before_the_first_step_and_where_no_loss_is_finite():
    assert "first step" in shown(80, [], STANDING)
    assert "nan" in shown(80, [row(0, math.nan, is_skipped=True)], STANDING)


@given(st.lists(st.floats(-1e6, 1e6), max_size=300), st.integers(1, 40))
def test_a_sparkline_has_at_most_its_width(values: list[float], width: int):
    line = sparkline(values, width)
    assert len(line) == min(width, len(values))
    assert set(line) <= set(SPARKS)


def test_the_curve_of_a_long_run_stays_small_and_keeps_its_mean():
    history = History(row(step, float(step)) for step in range(5000))
    assert len(history.losses) < 2 * History.SIZE
    assert history.losses == sorted(history.losses)
    assert sum(history.losses) / len(history.losses) == pytest.approx(2500, rel=0.01)
    assert means([1, 2, 3, 4], 2) == [1.5, 3.5]


def test_seconds_left_go_by_recent_steps():
    history = History([replace(row(0), step_seconds=90.0)])
    for step in range(50):
        history.add(row(step))
    assert seconds_left(STANDING, history) == pytest.approx(2.0 * 50)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """A console that believes in a terminal of 80 columns."""
    monkeypatch.delenv("REBUS_QUIET", raising=False)
    console = Console(file=io.StringIO(), force_terminal=True, width=80, height=40, color_system=None)
    monkeypatch.setattr(log, "console", console)
    monkeypatch.setattr(panel_module, "console", console)
    return console.file


def test_messages_stand_above_the_panel(terminal: io.StringIO):
    with Panel(10, title="connector", place="alone", rows=[row(0)]) as panel:
        panel.update(row(1), last_state=1)
        log.say("a word from elsewhere")
        panel.say("a word of its own")
    text = terminal.getvalue()
    assert "a word from elsewhere\n" in text
    assert "a word of its own\n" in text
    assert "2 of 10" in text
    assert text.rstrip().endswith("\x1b[2K") or "\x1b[?25h" in text, "the cursor is shown again"


@pytest.mark.parametrize("reason", ["quiet", "another rank"])
def test_it_is_silent_where_nobody_asked(terminal: io.StringIO, monkeypatch: pytest.MonkeyPatch, reason: str):
    if reason == "quiet":
        monkeypatch.setenv("REBUS_QUIET", "1")
    with Panel(10, title="connector", place="alone", is_main=reason == "quiet") as panel:
        panel.update(row(1))
    assert terminal.getvalue() == ""


def test_without_a_terminal_it_says_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("REBUS_QUIET", raising=False)
    console = Console(file=io.StringIO(), force_terminal=False, width=400)
    monkeypatch.setattr(log, "console", console)
    monkeypatch.setattr(panel_module, "console", console)
    with Panel(10, title="connector", place="alone") as panel:
        panel.update(row(1))
        assert console.file.getvalue() == "", "not each step"
        monkeypatch.setattr(panel_module, "PLAIN_SECONDS", -1.0)
        panel.update(row(2, heldout=2.5))
    [line] = console.file.getvalue().splitlines()
    assert line == plain_line(Standing(10, "connector", "alone"), History([row(1), row(2, heldout=2.5)]))
    for words in ("step 3 of 10", "loss 2.0000", "held out 2.5000", "500 tokens/s", "MFU 40.0%", "waits 10%"):
        assert words in line


def test_the_closing_table_adds_up():
    rows = [row(step, 4.0 - step / 10, mfu=0.5 if step % 2 else None) for step in range(20)]
    rows[3] = row(3, math.nan, is_skipped=True, heldout=3.0)
    rows[9] = replace(row(9, 3.1, heldout=2.5, mfu=0.2), step_seconds=4.0)
    rows[19] = row(19, 2.1, heldout=2.6, memory_gb=70.0)
    table = dict(summary_rows(rows))
    assert table["tokens"] == "20,000"
    assert table["loss, first tenth of steps"] == "3.950"
    assert table["held-out loss, last"] == "2.600"
    assert table["held-out loss, best (after step 10)"] == "2.500"
    assert table["steps not taken"] == "1"
    assert table["tokens/s"] == "476"
    assert table["peak memory"] == "70.00 GB"
    assert table["  of it backward"] == "57.1%"
    assert "  of it transfer" not in table
    assert mean_mfu(rows[8:10]) == 0.2
    assert mean_mfu([row(0, mfu=None)]) is None
    assert math.isnan(mean_loss([row(0, math.inf)]))
    assert sum(phase_shares([row(0)]).values()) == pytest.approx(1)
