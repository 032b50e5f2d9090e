"""The page: whole HTML, nothing from outside, every section, honest about what is missing."""

import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from rebus.report.gather import find_way
from rebus.report.page import MISSING, build_page
from rebus.report.results import gather_results
from rebus.report.section_made import meets
from rebus.report.section_training import moving_mean, smoothing_window

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Reader(HTMLParser):
    """Checks that tags close in order, and collects what matters."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: list[str] = []
        self.images: list[str] = []
        self.tags: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        self.ids += [values["id"] or ""] if tag == "section" else []
        self.images += [values["src"] or ""] if tag == "img" else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def page_of(folder: Path) -> tuple[str, Reader]:
    way = find_way(folder)
    html = build_page(way, gather_results(way))
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    return html, reader


def section(html: str, anchor: str) -> str:
    return html.split(f'<section id="{anchor}">')[1].split("</section>")[0]


def test_page_is_whole_and_self_contained(way_folder: Path):
    html, reader = page_of(way_folder)
    assert reader.ids == list(MISSING)
    assert "http" not in html
    assert not {"script", "link", "iframe"} & set(reader.tags)
    assert len(reader.images) >= 5 + 8
    assert all(source.startswith("data:image/webp;base64,") for source in reader.images)
    assert not any(line in html for line in MISSING.values() if line)
    assert not re.search(r"\bnan\b|\binf\b", html)
    assert len(html) < 1_500_000


def test_captions_are_escaped(way_folder: Path):
    html, _ = page_of(way_folder)
    assert "shape &lt;" in html
    assert "shape <" not in html


def test_threshold_and_both_outlines_are_drawn(way_folder: Path):
    html, _ = page_of(way_folder)
    scores = section(html, "scores")
    assert "threshold 0.35" in scores
    assert "clean, 34 pairs" in scores
    assert "swapped caption, 4 pairs" in scores
    assert "swapped, yet not dropped by this rule: 1" in scores
    assert "clean, yet dropped by this rule: 3" in scores


def test_funnel_shows_its_numbers(way_folder: Path):
    html, _ = page_of(way_folder)
    words = " ".join(re.sub(r"<[^>]*>", " ", section(html, "funnel")).split())
    assert "match 6 32 80.0%" in words
    assert "pair_similarity.z at least 0.35" in words


def test_verdicts_have_words(way_folder: Path):
    html, _ = page_of(way_folder)
    answers = section(html, "answers")
    assert answers.count("✓ right") == 5  # of 8 items, those whose number 3 does not divide
    assert answers.count("✗ wrong") == 3


def test_a_run_shows_what_it_measured(way_folder: Path):
    training = section(page_of(way_folder)[0], "training")
    first = training.split("<h3>")[1]
    assert first.startswith("y_first</h3>")
    assert "60 steps in 30.0 s, 12,000 tokens, 400 tokens/s, MFU 35" in first
    assert "Steps not taken: 1." in first
    assert first.count('r="3.6"') == 6 + 1, "six held-out points and their key"
    assert first.count('class="skipped"') == 1 + 1
    for words in ("wait 4.0%", "backward 60.0%", "gradient norm, connector", "gradient norm, language", "MFU %"):
        assert words in first
    assert "communication" not in first, "what took no time has no key"


def test_an_older_runs_rows_still_make_a_page(way_folder: Path):
    """Without phases, norms, MFU, and with a step whose loss is not finite."""
    path = way_folder / "y_first" / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    new = ("phases", "flops", "mfu", "memory_gb", "grad_norms", "is_skipped", "heldout")
    rows = [{name: value for name, value in row.items() if name not in new} for row in rows]
    rows[4]["loss"] = rows[4]["grad_norm"] = math.nan
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    html, _ = page_of(way_folder)
    first = section(html, "training").split("<h3>")[1]
    assert "gradient norm, all parts" in first
    assert "MFU" not in first
    assert "held out" not in first
    assert "on average" not in first
    assert not re.search(r"\bnan\b", first)


def test_targets_stand_beside_values(way_folder: Path):
    (way_folder / "targets.json").write_text(json.dumps({"swaps_removed": {"min": 0.9}, "pack_fill": {"min": 0.95}}))
    tiles = section(page_of(way_folder)[0], "headline")
    assert re.search(r"75\.0%.*target at least 90\.0% <b class=\"wrong\">✗ not met", tiles)
    assert re.search(r"95\.0%.*target at least 95\.0% <b class=\"right\">✓ met", tiles)


def test_artifacts_carry_the_time_of_their_command(way_folder: Path):
    made = section(page_of(way_folder)[0], "made")
    assert re.search(r"<b>y_first</b> <span>checkpoint</span> <code>\w{12}</code>, 1 min 0 s", made)
    assert re.search(r"<b>z_kept</b> <span>selection</span> <code>\w{12}</code></summary>", made)


@pytest.mark.parametrize(
    ("folders", "anchor"),
    [
        (["z_kept"], "funnel"),
        (["a_tables"], "scores"),
        (["plan_one", "plan_two"], "packs"),
        (["y_first", "x_last"], "training"),
        (["c_judged"], "evaluation"),
        (["c_judged"], "answers"),
    ],
)
def test_a_missing_artifact_leaves_one_line(way_folder: Path, folders: list[str], anchor: str):
    for name in folders:
        shutil.rmtree(way_folder / name)
    html, _ = page_of(way_folder)
    assert MISSING[anchor] in section(html, anchor)


def test_shards_that_moved_leave_the_page_whole(way_folder: Path):
    shutil.rmtree(way_folder.parent / "heldout")
    html, _ = page_of(way_folder)
    assert "no picture" in section(html, "answers")


@pytest.mark.parametrize(
    ("value", "target", "met"),
    [(0.9, {"min": 0.9}, True), (0.89, {"min": 0.9}, False), (5, {"max": 4}, False), (None, {"max": 4}, False)],
)
def test_meets(value: float | None, target: dict[str, float], met: bool):
    assert meets(value, target) is met


def test_moving_mean_weights_its_neighbours():
    assert moving_mean([1.0, 2.0, 6.0], [1, 1, 2], 3) == [1.5, (1 + 2 + 12) / 4, (2 + 12) / 3]
    assert [smoothing_window(n) for n in (1, 39, 40, 100)] == [1, 1, 3, 5]
