"""The page's frame: the headline, how everything was made, and what the numbers do not show."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import yaml

from rebus.errors import DataError
from rebus.log import duration
from rebus.report.figures import bar, number
from rebus.report.gather import Artifact, Command, Way, read_clock
from rebus.report.results import headline_eval
from rebus.report.section_model import choice_counts


def percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def gigabytes(value: float) -> str:
    return f"{value:.2f} GB"


def count(value: float) -> str:
    return f"{value:,.0f}"


@dataclass(frozen=True)
class Tile:
    """A headline number: the result's name, what it is called, how it is written."""

    name: str
    title: str
    write: Callable[[float], str]


TILES = (
    Tile("swaps_removed", "planted swapped captions removed", percent),
    Tile("clean_removed", "clean pairs removed with them", percent),
    Tile("damaged_found", "planted damaged members found", count),
    Tile("pack_fill", "pack fill, worst plan", percent),
    Tile("tokens_trained", "tokens trained on", count),
    Tile("seconds_total", "from first to last command", duration),
    Tile("peak_rss_gb", "peak memory", gigabytes),
)


def tiles_section(results: dict[str, Any], targets: dict[str, dict[str, float]]) -> str:
    choices = [
        Tile(f"choice{num}_{control}_image", f"right label of {num}, {words}", percent)
        for num in choice_counts(results)
        for control, words in (
            ("right", "shown its own picture"),
            ("wrong", "shown a wrong picture"),
            ("no", "shown no picture"),
        )
    ]
    tiles = "".join(_tile(tile, results, targets) for tile in (*choices, *TILES) if tile.name in results)
    return f'<ul class="tiles">{tiles}</ul>'


def _tile(tile: Tile, results: dict[str, Any], targets: dict[str, dict[str, float]]) -> str:
    value = results[tile.name]
    shown = "not measured" if value is None else tile.write(value)
    lines = [f'<span class="value{"" if value is not None else " none"}">{shown}{_of(tile.name, results)}</span>']
    lines.append(f'<span class="title">{escape(tile.title)}</span>')
    interval = results.get(f"{tile.name}_ci95")
    if interval:
        lines.append(f'<span class="small">95%: {100 * interval[0]:.1f} to {percent(interval[1])}</span>')
    if tile.name in targets:
        lines.append(_target(tile, value, targets[tile.name]))
    return f"<li>{''.join(lines)}</li>"


def _of(name: str, results: dict[str, Any]) -> str:
    if name == "damaged_found":
        return f" <small>of {results['damaged_planted']:,}</small>"
    if name == "swaps_removed":
        return f" <small>of {results['planted_swaps']:,}</small>"
    return ""


def _target(tile: Tile, value: float | None, target: dict[str, float]) -> str:
    words = " and ".join(
        f"at {'least' if end == 'min' else 'most'} {tile.write(bound)}" for end, bound in sorted(target.items())
    )
    met = meets(value, target)
    style, verdict = ("right", "✓ met") if met else ("wrong", "✗ not met")
    return f'<span class="small">target {words} <b class="{style}">{verdict}</b></span>'


def meets(value: float | None, target: dict[str, float]) -> bool:
    """True where a value lies within {"min": x, "max": y}, ends included; what was not measured meets nothing."""
    unknown = set(target) - {"min", "max"}
    if unknown:
        raise DataError(f"targets.json: a target has `min` or `max`, not {sorted(unknown)}.")
    return value is not None and target.get("min", value) <= value <= target.get("max", value)


def made_section(way: Way) -> str:
    rows = "".join(_made(way, artifact) for artifact in way.artifacts)
    return f'<div class="made">{rows}</div>{_clock_table(way)}'


def _made(way: Way, artifact: Artifact) -> str:
    sources = [name for name, fp in artifact.manifest.inputs.items() if fp]
    names = {a.fingerprint: a.name for a in way.artifacts}
    inputs = ", ".join(
        f"{escape(name)} {escape(names.get(artifact.manifest.inputs[name], ''))} "
        f"<code>{artifact.manifest.inputs[name][:12]}</code>"
        for name in sources
    )
    strangers = way.strangers_of(artifact)
    gone = f'; <b class="wrong">no longer there: {escape(", ".join(strangers))}</b>' if strangers else ""
    seconds = sum(command.seconds for command in read_clock(way.folder) if makes(command, artifact))
    took = f", {duration(seconds)}" if seconds else ""
    return (
        f"<details><summary><b>{escape(artifact.name)}</b> <span>{escape(artifact.manifest.kind)}</span> "
        f"<code>{artifact.fingerprint[:12]}</code>{took}</summary>"
        f'<p class="note">made of: {inputs or "nothing else"}{gone}</p>'
        f"<pre>{escape(artifact.recipe_text)}</pre></details>"
    )


def makes(command: Command, artifact: Artifact) -> bool:
    """True if a command, such as `train align.yaml out=runs/a`, writes the artifact: by the `out` of its recipe."""
    words = shlex.split(command.name)
    outs = [word.removeprefix("out=") for word in words if word.startswith("out=")]
    recipes = [Path(word) for word in words if word.endswith((".yaml", ".yml"))]
    if not outs and recipes and recipes[0].is_file():
        tree = yaml.safe_load(recipes[0].read_text(encoding="utf-8"))
        outs = [str(tree["out"])] if isinstance(tree, dict) and "out" in tree else []
    return bool(outs) and Path(outs[-1]).resolve() == artifact.folder.resolve()


def _clock_table(way: Way) -> str:
    clock = read_clock(way.folder)
    if not clock:
        return '<p class="note">No clock.jsonl in this folder: nobody measured time and memory.</p>'
    longest = max(command.seconds for command in clock) or 1
    rows = "".join(
        f'<tr><th scope="row">{escape(c.name)}</th><td class="wide">{bar(c.seconds / longest)}</td>'
        f'<td class="n" data-unit="s">{c.seconds:,.1f}</td><td class="n" data-unit="CPU s">{c.cpu_seconds:,.1f}</td>'
        f'<td class="n" data-unit="GB">{c.peak_rss_gb:.2f}</td></tr>'
        for c in clock
    )
    head = '<th>command</th><th class="wide"></th><th class="n">wall s</th><th class="n">CPU s</th>'
    return f'<table class="bars"><thead><tr>{head}<th class="n">peak GB</th></tr></thead><tbody>{rows}</tbody></table>'


def limits_section(way: Way, results: dict[str, Any]) -> str:
    """What the numbers leave open, from what was measured and how."""
    points = [*_sample_size(results), *_seeds(way), *_scope(way, results)]
    return f'<ul class="plain">{"".join(f"<li>{point}</li>" for point in points)}</ul>'


def _sample_size(results: dict[str, Any]) -> list[str]:
    points = []
    for num in choice_counts(results):
        interval = results.get(f"choice{num}_right_image_ci95")
        if interval and results.get("num_eval"):
            half = 50 * (interval[1] - interval[0])
            points.append(
                f"<b>Few questions.</b> {results['num_eval']:,} pictures: the 95% interval of the main number is "
                f"±{half:.1f} points wide. Two runs whose intervals overlap may well be equal."
            )
        points.append(
            f"<b>Choosing is easier than knowing.</b> One of {num} given labels is right; chance is {100 / num:g}%. "
            "A high share here does not mean that the model would name the picture by itself: read the free answers."
        )
    return points


def _seeds(way: Way) -> list[str]:
    seeds = {str(c.recipe["seed"]) for c in way.of_kind("checkpoint") if "seed" in c.recipe}
    if not seeds:
        return []
    which = f"seed {', '.join(sorted(seeds))}"
    return [f"<b>One run.</b> Training ran once ({which}). How much another seed would change was not measured."]


def _scope(way: Way, results: dict[str, Any]) -> list[str]:
    points = []
    kept = results.get("num_kept")
    if way.of_kind("checkpoint"):
        seen = f"{kept:,} kept pairs" if kept else "the pairs of this pool"
        asked = "The questions are of the same kind; pictures of another kind were not tried."
        points.append(
            f"<b>Small concepts.</b> The connection between pictures and words was learned from {seen}. "
            f"{asked if results.get('num_eval') else ''}"
        )
    if results.get("planted_swaps"):
        points.append(
            "<b>Planted faults are easier than real ones.</b> A swapped caption belongs to quite another picture; "
            "captions that are nearly right are harder to find, and nobody counted those."
        )
    if headline_eval(way) is None:
        points.append("<b>No evaluation.</b> Nothing here says what the model knows.")
    return points or ["Nothing was trained or evaluated here: the page shows data alone."]


def closing_rows(results: dict[str, Any]) -> list[tuple[str, str]]:
    """results.json as a table for the terminal."""
    writers = {tile.name: tile.write for tile in TILES}
    shares = ("pack_fill_", "choice", "naming_")
    for name in results:
        if name.startswith(shares) and not name.endswith("_p"):
            writers[name] = percent
    return [(name, _cell(value, writers.get(name))) for name, value in results.items()]


def _cell(value: Any, write: Callable[[float], str] | None) -> str:
    if value is None:
        return "not measured"
    if isinstance(value, list):
        return " to ".join(_cell(item, write) for item in value)
    if isinstance(value, (bool, str)):
        return str(value)
    return write(value) if write else number(value)
