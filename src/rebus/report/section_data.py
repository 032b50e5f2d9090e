"""The page's sections on data: what was dropped, how the pool scores, how full the packs are."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rebus.report.figures import Outline, columns, histogram, number, two_part_bar
from rebus.report.gather import Artifact, Way, read_json, read_planted
from rebus.report.pictures import load_examples
from rebus.report.results import evenly, quarantine_of
from rebus.scores.tables import numbers_of, table_files

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
NUM_BINS = 32
MAX_COLUMNS = 200  # packs that are drawn one by one; more would be thinner than a pixel


@dataclass(frozen=True)
class Column:
    """A scored column over the pool: uids and float values, NaN left out."""

    scorer: str
    name: str
    uids: list[str]
    values: NDArray[np.float64]


@dataclass(frozen=True)
class Cut:
    """A rule that used a column. threshold: the value at its border; None where each shard has its own.

    dropped: uids that the rule dropped.
    """

    rule: str
    words: str
    threshold: float | None
    dropped: frozenset[str]


def funnel_section(way: Way) -> str:
    return "".join(_funnel(selection, len(way.of_kind("selection")) > 1) for selection in way.of_kind("selection"))


def _funnel(selection: Artifact, named: bool) -> str:
    rows = read_json(selection.folder / "funnel.json")
    total = max(rows[0]["left"], 1)
    body = "".join(
        f'<tr><th scope="row">{escape(row["rule"])}</th>'
        f'<td class="wide">{two_part_bar(row["left"] / total, row["dropped"] / total)}</td>'
        f'<td class="n" data-unit="dropped">{row["dropped"]:,}</td>'
        f'<td class="n" data-unit="left">{row["left"]:,}</td>'
        f'<td class="n">{100 * row["left"] / total:.1f}%</td></tr>'
        for row in rows
    )
    title = f"<h3>{escape(selection.name)}</h3>" if named else ""
    return (
        f'{title}<table class="bars"><thead><tr><th>rule, in order</th><th class="wide">left, '
        '<span class="hatch-key"></span> dropped by this rule</th><th class="n">dropped</th><th class="n">left</th>'
        f'<th class="n">of all</th></tr></thead><tbody>{body}</tbody></table>{_cuts_in_words(selection)}'
    )


def _cuts_in_words(selection: Artifact) -> str:
    rules = selection.manifest.made_by.get("rules", [])
    words = [f"<li><b>{escape(rule['name'])}</b>: {escape(_words_of(rule))}</li>" for rule in rules]
    return f'<ul class="plain">{"".join(words)}</ul>' if words else ""


def _words_of(rule: dict[str, Any]) -> str:
    if rule.get("rule", "column") != "column":
        given = [f"{name} {value}" for name, value in rule.items() if name not in ("name", "rule", rule["rule"])]
        return ", ".join([f"{rule['rule']} {rule.get(rule['rule'], '')}".strip(), *given])
    within = " of each shard" if rule.get("within") else ""
    for measure, words in (("min", "at least {}"), ("max", "at most {}")):
        if rule.get(measure) is not None:
            return f"{rule['column']} {words.format(number(rule[measure]))}"
    for measure in ("min_quantile", "max_quantile", "equals", "not_equals", "one_of"):
        if rule.get(measure) is not None:
            return f"{rule['column']} {measure.replace('_', ' ')} {rule[measure]}{within}"
    if rule.get("keep_fraction") is not None:
        return f"keeps the {100 * rule['keep_fraction']:g}%{within} that are highest in {rule['column']}"
    return f"drops the {100 * (rule.get('drop_fraction') or 0):g}%{within} that are lowest in {rule['column']}"


def quarantine_section(way: Way) -> str:
    """Samples that could not be used, by the artifact whose making found them and by reason."""
    counts = Counter(
        (artifact.name, str(row.get("reason", "")))
        for artifact in way.artifacts
        if artifact.manifest.kind in ("shards", "scores", "plan")
        for row in quarantine_of(artifact)
    )
    rows = "".join(
        f'<tr><th scope="row">{escape(reason)}</th><td>{escape(name)}</td><td class="n">{count:,}</td></tr>'
        for (name, reason), count in counts.items()
    )
    head = '<thead><tr><th>reason</th><th>found while making</th><th class="n">samples</th></tr></thead>'
    return f"<table>{head}<tbody>{rows}</tbody></table>" if rows else ""


def scores_section(way: Way) -> str:
    """Columns that a rule used first and open, the others folded away."""
    used: list[str] = []
    rest: list[str] = []
    constant: list[str] = []
    for scores in way.of_kind("scores"):
        for column in read_columns(scores):
            cuts = _cuts(way, scores, column)
            if column.values.min() == column.values.max() and not cuts:
                constant.append(f"{column.scorer}.{column.name} {number(column.values[0])}")
            else:
                (used if cuts else rest).append(_column_figure(way, scores, column, cuts))
    body = "".join(used)
    if rest:
        state = "" if used else " open"
        title = f"Scored columns that no rule used: {len(rest)}"
        body += f'<details{state}><summary>{title}</summary><div class="grid">{"".join(rest)}</div></details>'
    if constant:
        body += f'<p class="note">The same for every pair: {escape(", ".join(constant))}.</p>'
    return body


def read_columns(scores: Artifact) -> Iterator[Column]:
    """Every column of every scorer, over all shards."""
    for folder in sorted(path for path in scores.folder.iterdir() if path.is_dir()):
        tables = [pq.read_table(path) for path in table_files(folder)]
        if tables:
            yield from _columns_of(folder.name, pa.concat_tables(tables))


def _columns_of(scorer: str, table: pa.Table) -> Iterator[Column]:
    uids = np.array(table["uid"].to_pylist(), dtype=object)
    for name in numbers_of(table):
        values = table[name].to_numpy().astype(np.float64)
        good = np.isfinite(values)
        if good.any():
            yield Column(scorer, name, uids[good].tolist(), values[good])


def _cuts(way: Way, scores: Artifact, column: Column) -> list[Cut]:
    """The rules of the selections made of these scores that name the column."""
    return [
        Cut(rule["name"], _words_of(rule), _threshold(selection, rule, column), _dropped_by(selection, rule["name"]))
        for selection in way.standing_on("selection", scores)
        for rule in selection.manifest.made_by.get("rules", [])
        if rule.get("column") in (column.name, f"{column.scorer}.{column.name}")
    ]


def _threshold(selection: Artifact, rule: dict[str, Any], column: Column) -> float | None:
    """A bound as it stands in the recipe; for a share, the lowest value that passed."""
    for bound in ("min", "max"):
        if rule.get(bound) is not None:
            return float(rule[bound])
    if rule.get("within") or rule.get("max_quantile") is not None:
        return None
    survivors = _survivors(selection, rule["name"])
    values = [value for uid, value in zip(column.uids, column.values, strict=True) if uid in survivors]
    return float(min(values)) if values else None


def _dropped_by(selection: Artifact, rule: str) -> frozenset[str]:
    table = pq.read_table(selection.folder / "selection.parquet", columns=["uid", "dropped_by"])
    return frozenset(table.filter(pc.equal(table["dropped_by"], rule))["uid"].to_pylist())


def _survivors(selection: Artifact, rule: str) -> set[str]:
    """uids that passed a rule: those kept, and those that a later rule dropped."""
    names = [row["rule"] for row in read_json(selection.folder / "funnel.json")]
    passed = {"", *names[names.index(rule) + 1 :]}
    table = pq.read_table(selection.folder / "selection.parquet", columns=["uid", "dropped_by"]).to_pydict()
    return {uid for uid, by in zip(table["uid"], table["dropped_by"], strict=True) if by in passed}


def _column_figure(way: Way, scores: Artifact, column: Column, cuts: list[Cut]) -> str:
    title = f"{column.scorer}.{column.name}"
    cut = "; ".join(f"rule <b>{escape(cut.rule)}</b> {escape(cut.words)}" for cut in cuts)
    note = f'<p class="note">{cut}</p>' if cut else ""
    low, high = column.values.min(), column.values.max()
    if low == high:
        return f'<figure><figcaption>{escape(title)}</figcaption><p class="note">every pair: {number(low)}</p></figure>'
    legend, drawing = _distribution(way, scores, column, cuts)
    strip = _quantile_strip(way, scores, column) + "".join(_mistake_strips(way, scores, column, cut) for cut in cuts)
    style = ' class="broad"' if cuts else ""
    return (
        f"<figure{style}><figcaption>{escape(title)}</figcaption><div>{note}{legend}{drawing}</div>"
        f"<div>{strip}</div></figure>"
    )


def _distribution(way: Way, scores: Artifact, column: Column, cuts: list[Cut]) -> tuple[str, str]:
    """Legend and histogram: all pairs, or two outlines, each in percent of its group, where swaps are known."""
    threshold = next((cut.threshold for cut in cuts if cut.threshold is not None), None)
    edges, outside = _edges(column.values, threshold)
    swapped = _swapped(way, scores)
    beyond = f" {outside:,} pairs lie beyond this range." if outside else ""
    if not swapped & set(column.uids):
        outline = Outline("all", "outline-a", np.histogram(column.values, edges)[0].tolist())
        note = f'<p class="note">{beyond}</p>' if beyond else ""
        return note, histogram(edges, [outline], x_label=column.name, y_label="pairs", threshold=threshold)
    is_swapped = np.array([uid in swapped for uid in column.uids])
    groups = (("clean", "outline-a", ~is_swapped), ("swapped caption", "outline-b", is_swapped))
    outlines = [Outline(name, style, _percent(column.values[group], edges)) for name, style, group in groups]
    keys = "".join(
        f'<span><i class="key {style}-key"></i>{name}, {int(group.sum()):,} pairs</span>'
        for name, style, group in groups
    )
    drawing = histogram(edges, outlines, x_label=column.name, y_label="% of its group", threshold=threshold)
    return f'<p class="legend">{keys}{beyond}</p>', drawing


def _edges(values: NDArray[np.float64], threshold: float | None) -> tuple[list[float], int]:
    """Bins over all values, or over the middle 99% where a long tail would squeeze the rest to one bin."""
    low, high = float(values.min()), float(values.max())
    inner_low, inner_high = (float(q) for q in np.quantile(values, [0.005, 0.995]))
    if inner_high > inner_low and high - low > 2.5 * (inner_high - inner_low):
        low, high = inner_low, inner_high
    if threshold is not None:
        low, high = min(low, threshold), max(high, threshold)
    edges = np.linspace(low, high, NUM_BINS + 1)
    if np.array_equal(values, np.round(values)):  # whole numbers: as many in each bin, or the outline shows a comb
        width = math.ceil((high - low + 1) / NUM_BINS)
        edges = np.arange(math.floor(low), high + width + 0.5, width) - 0.5
    outside = int(((values < edges[0]) | (values > edges[-1])).sum())
    return edges.tolist(), outside


def _percent(values: NDArray[np.float64], edges: list[float]) -> list[float]:
    return (100 * np.histogram(values, edges)[0] / max(len(values), 1)).tolist()


def _swapped(way: Way, scores: Artifact) -> set[str]:
    planted = [read_planted(shards) for shards in way.inputs_of(scores, "shards")]
    return {uid for found in planted if found for uid in found.swapped}


def _quantile_strip(way: Way, scores: Artifact, column: Column) -> str:
    """The pair that stands at each quantile."""
    order = np.argsort(column.values, kind="stable")
    places = [int(order[round(q * (len(order) - 1))]) for q in QUANTILES]
    labels = [
        f"{100 * share:g}%: {number(column.values[place])}" for share, place in zip(QUANTILES, places, strict=True)
    ]
    return _strip(way, scores, [column.uids[place] for place in places], labels, "at its quantiles")


def _mistake_strips(way: Way, scores: Artifact, column: Column, cut: Cut) -> str:
    """Where swaps are known: those that a rule let through, and the clean pairs that it dropped."""
    swapped = _swapped(way, scores)
    if not swapped:
        return ""
    groups = (
        ("swapped, yet not dropped by this rule", lambda uid: uid in swapped and uid not in cut.dropped),
        ("clean, yet dropped by this rule", lambda uid: uid not in swapped and uid in cut.dropped),
    )
    strips = []
    for title, belongs in groups:
        found = sorted((value, uid) for uid, value in zip(column.uids, column.values, strict=True) if belongs(uid))
        chosen = evenly(found, len(QUANTILES))
        labels = [number(value) for value, _ in chosen]
        strips.append(_strip(way, scores, [uid for _, uid in chosen], labels, f"{title}: {len(found):,}"))
    return "".join(strips)


def _strip(way: Way, scores: Artifact, uids: list[str], labels: list[str], title: str) -> str:
    """A row of pairs, each under its label."""
    examples = load_examples(uids, way.inputs_of(scores, "shards"))
    swapped = _swapped(way, scores)
    cells = []
    for uid, label in zip(uids, labels, strict=True):
        example = examples.get(uid)
        picture = (
            f'<img src="{example.picture}" alt="" loading="lazy">' if example and example.picture else "no picture"
        )
        caption = escape(example.text) if example else "gone from its shard"
        mark = ' <b class="flag">swapped</b>' if uid in swapped else ""
        cells.append(f'<li>{picture}<span class="q">{label}</span><span class="caption">{caption}</span>{mark}</li>')
    return f'<p class="note">{escape(title)}</p><ol class="strip">{"".join(cells)}</ol>'


def packs_section(way: Way) -> str:
    figures = [_pack_figures(plan) for plan in way.of_kind("plan")]
    return f'<div class="grid">{"".join(figures)}</div>' if figures else ""


def _pack_figures(plan: Artifact) -> str:
    with pa.memory_map(str(plan.folder / "plan.arrow")) as source:
        table = pa.ipc.open_file(source).read_all()
    facts = plan.manifest.facts
    packs, lengths = table["pack"].to_numpy(), table["num_tokens"].to_numpy()
    fills = np.bincount(packs, weights=lengths) / facts["capacity"]
    edges, _ = _edges(lengths.astype(np.float64), None)
    counts = np.histogram(lengths, edges)[0].tolist()
    shown, x_label = fills.tolist(), "pack"
    if len(shown) > MAX_COLUMNS:
        shown, x_label = evenly(sorted(shown, reverse=True), MAX_COLUMNS), f"{MAX_COLUMNS} of the packs, fullest first"
    note = (
        f"{facts['num_packs']:,} packs of {facts['capacity']:,} tokens, {facts['num_documents']:,} documents, "
        f"{facts['num_tokens']:,} tokens; fill {100 * facts['fill']:.2f}%, the emptiest pack {100 * fills.min():.1f}%"
    )
    return (
        f'<figure><figcaption>{escape(plan.name)}</figcaption><p class="note">{note}</p>'
        f"{columns(shown, x_label=x_label, y_label='fill (%)')}"
        f"{histogram(edges, [Outline('all', 'outline-a', counts)], x_label='tokens per document', y_label='documents')}"
        "</figure>"
    )
