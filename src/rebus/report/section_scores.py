"""The page's section on scores: histograms of numbers, bars of words, pairs at the quantiles of each column."""

import math
from dataclasses import dataclass
from html import escape

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from rebus.report.figures import Outline, bar, histogram, number
from rebus.report.gather import Artifact, Way
from rebus.report.results import evenly
from rebus.report.rule_words import Rule, columns_of, words_of
from rebus.report.score_sample import SEED, Column, Scored, examples_of, fates
from rebus.report.strips import Source, cell, source_of, strip

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
AT_EACH = 4  # pairs at a quantile of a column that a rule used
SHORT = (0.05, 0.25, 0.5, 0.75, 0.95)
NUM_BINS = 32
MAX_GRIDS = 10  # columns drawn with 28 pairs each, about 100 kB of photos; the others have 5
MAX_WORDS = 12
FEW_WORDS = 3  # of a column in which hardly anything comes twice, such as a model's answers


@dataclass(frozen=True)
class Cut:
    """A rule that used a column. threshold: the value at its border; None where there is no single one.

    dropped: [rows of the sample] whether the rule dropped the pair. is_alone: it looks at no other column.
    """

    rule: str
    words: str
    threshold: float | None
    dropped: NDArray[np.bool_]
    is_alone: bool


def scores_section(way: Way, pools: list[Scored]) -> str:
    max_grids = max(2, MAX_GRIDS // max(len(pools), 1))
    return "".join(_scores(way, scored, max_grids, len(pools) > 1) for scored in pools)


def _scores(way: Way, scored: Scored, max_grids: int, named: bool) -> str:
    """Columns that a rule used, and one of every scorer, first and open; the others folded away."""
    source, cuts = source_of(way, scored.scores), _cuts(way, scored)
    shown = [column for column in scored.numbers if not column.is_constant or cuts.get(column.title)]
    open_ones = {c.title for c in [*(c for c in shown if cuts.get(c.title)), *representatives(scored)][:max_grids]}
    broad = [_broad_figure(scored, source, c, cuts.get(c.title, [])) for c in shown if c.title in open_ones]
    rest = [_small_figure(scored, source, c) for c in shown if c.title not in open_ones]
    body = (f"<h3>{escape(scored.scores.name)}</h3>" if named else "") + (
        f'<p class="note">{scored.note}</p>' if scored.note else ""
    )
    body += "".join(broad) + _words(scored, cuts)
    if rest:
        body += (
            f'<details><summary>Other columns: {len(rest)}</summary><div class="grid">{"".join(rest)}</div></details>'
        )
    constant = [f"{c.title} {number(c.values[0])}" for c in scored.numbers if c not in shown]
    if constant:
        body += f'<p class="note">The same for every pair: {escape(", ".join(constant))}.</p>'
    return body


def representatives(scored: Scored) -> list[Column]:
    """One column of each scorer: that with the most different values, which tells pairs apart best."""
    chosen: dict[str, tuple[int, Column]] = {}
    for column in scored.numbers:
        count = len(np.unique(column.values))
        if count > 1 and (column.scorer not in chosen or count > chosen[column.scorer][0]):
            chosen[column.scorer] = (count, column)
    return [column for _, column in chosen.values()]


def _cuts(way: Way, scored: Scored) -> dict[str, list[Cut]]:
    """The rules of the selections made of these scores, by the title of each column that they name."""
    found: dict[str, list[Cut]] = {}
    titles = [name for name in scored.rows.column_names if "." in name]
    for selection in way.standing_on("selection", scored.scores):
        rules = [rule for rule in selection.manifest.made_by.get("rules", []) if columns_of(rule)]
        fate = np.array(fates(selection, scored.rows["uid"]) if rules else [], dtype=object)
        for rule in rules:
            for title in titles:
                if columns_of(rule) & {title, title.partition(".")[2]}:
                    cut = _cut(selection, rule, scored, title, fate)
                    found.setdefault(title, []).append(cut)
    return found


def _cut(selection: Artifact, rule: Rule, scored: Scored, title: str, fate: NDArray[np.object_]) -> Cut:
    threshold = _threshold(selection, rule, scored, title, fate)
    return Cut(rule["name"], words_of(rule), threshold, fate == rule["name"], len(columns_of(rule)) == 1)


def _threshold(selection: Artifact, rule: Rule, scored: Scored, title: str, fate: NDArray[np.object_]) -> float | None:
    """A bound as it stands in the recipe; for a share, the lowest value that passed."""
    for bound in ("min", "max", "threshold"):
        if rule.get(bound) is not None:
            return float(rule[bound])
    shares = ("keep_fraction", "drop_fraction", "min_quantile", "fraction")
    if rule.get("within") or all(rule.get(share) is None for share in shares):
        return None
    nearest = examples_of(selection).get(rule["name"], {}).get("kept", [])
    if nearest and nearest[0]["value"] is not None:
        return float(nearest[0]["value"])
    rules = [one["name"] for one in selection.manifest.made_by["rules"]]
    passed = {"", *rules[rules.index(rule["name"]) + 1 :]}
    values = scored.values(title)[np.isin(fate.astype(str), list(passed))]
    return float(np.nanmin(values)) if np.isfinite(values).any() else None


def _broad_figure(scored: Scored, source: Source, column: Column, cuts: list[Cut]) -> str:
    notes = "".join(f'<p class="note">rule <b>{escape(c.rule)}</b>: {escape(c.words)}</p>' for c in cuts)
    title = f"<figcaption>{escape(column.title)}</figcaption>"
    if column.is_constant:
        return f'<figure>{title}{notes}<p class="note">every pair: {number(column.values[0])}</p></figure>'
    values = scored.all_values(column)
    numbers = _summary(scored, values)
    mistakes = "".join(_mistakes(scored, source, column, cut) for cut in cuts if cut.is_alone)
    left = f"{notes}{_distribution(scored, source, column, values, cuts)}{numbers if mistakes else ''}"
    return (
        f'<figure class="broad">{title}<div>{left}</div><div>{mistakes or numbers}</div>'
        f'<div class="across">{_quantile_grid(scored, source, column)}</div></figure>'
    )


def _small_figure(scored: Scored, source: Source, column: Column) -> str:
    order = in_order(column)
    places = np.concatenate([around(order, share, 1) for share in SHORT])
    found = zip(SHORT, column.values[places], strict=True)
    labels = [f"{100 * share:g}%: {number(float(value))}" for share, value in found]
    rows = column.rows[places]
    pairs = strip(source, scored.uids(rows), labels, "at its quantiles", scored.stems(rows))
    drawing = _distribution(scored, source, column, scored.all_values(column), [])
    return f"<figure><figcaption>{escape(column.title)}</figcaption><div>{drawing}</div><div>{pairs}</div></figure>"


def _summary(scored: Scored, values: NDArray[np.float64]) -> str:
    """Its numbers over the whole pool: quantiles, mean, and how many pairs have none."""
    found = zip(QUANTILES, np.quantile(values, QUANTILES), strict=True)
    cells = [(f"{100 * share:g}%", number(float(value))) for share, value in found]
    cells += [("mean", number(float(values.mean()))), ("pairs", f"{len(values):,}")]
    if scored.num_rows > len(values):
        cells.append(("without a value", f"{scored.num_rows - len(values):,}"))
    items = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in cells)
    return f'<dl class="numbers">{items}</dl>'


def in_order(column: Column) -> NDArray[np.int64]:
    """Places in `column.rows` from the lowest value to the highest; equal values in an order drawn once (SEED), not in
    that of the shards."""
    lots = np.random.default_rng(SEED).permutation(len(column.values))
    return np.lexsort((lots, column.values))


def around(order: NDArray[np.int64], share: float, count: int) -> NDArray[np.int64]:
    """The `count` places about a quantile."""
    count = min(count, len(order))
    middle = round(share * (len(order) - 1))
    start = min(max(middle - (count - 1) // 2, 0), len(order) - count)
    return order[start : start + count]


def _quantile_grid(scored: Scored, source: Source, column: Column) -> str:
    count = max(1, min(AT_EACH, len(column.values) // len(QUANTILES)))
    order = in_order(column)
    groups = [around(order, share, count) for share in QUANTILES]
    rows = column.rows[np.concatenate(groups)]
    examples = source.load(scored.uids(rows), scored.stems(rows))
    items = []
    for share, places in zip(QUANTILES, groups, strict=True):
        pairs = zip(scored.uids(column.rows[places]), column.values[places], strict=True)
        cells = "".join(cell(source, examples, uid, number(float(value))) for uid, value in pairs)
        items.append(f'<li><b>{100 * share:g}%</b><ol class="strip">{cells}</ol></li>')
    note = '<p class="note">at its quantiles, from the lowest to the highest</p>'
    return f'{note}<ol class="quantiles">{"".join(items)}</ol>'


def _distribution(scored: Scored, source: Source, column: Column, values: NDArray[np.float64], cuts: list[Cut]) -> str:
    """Legend and histogram: all pairs, or two outlines, each in percent of its group, where swaps are known.

    values: of the column over the whole pool."""
    threshold = next((cut.threshold for cut in cuts if cut.threshold is not None), None)
    edges, outside = bins(values, threshold)
    beyond = f" {outside:,} pairs lie beyond this range." if outside else ""
    is_swapped = swapped_rows(scored, source)[column.rows]
    if not is_swapped.any():
        outline = Outline("all", "outline-a", np.histogram(values, edges)[0].tolist())
        note = f'<p class="note">{beyond}</p>' if beyond else ""
        return note + histogram(edges, [outline], x_label=column.name, y_label="pairs", threshold=threshold)
    groups = (("clean", "outline-a", ~is_swapped), ("swapped caption", "outline-b", is_swapped))
    outlines = [Outline(name, style, _percent(column.values[group], edges)) for name, style, group in groups]
    keys = "".join(
        f'<span><i class="key {style}-key"></i>{name}, {int(group.sum()):,} pairs</span>'
        for name, style, group in groups
    )
    drawing = histogram(edges, outlines, x_label=column.name, y_label="% of its group", threshold=threshold)
    return f'<p class="legend">{keys}{beyond}</p>{drawing}'


def swapped_rows(scored: Scored, source: Source) -> NDArray[np.bool_]:
    """[rows of the sample] whether someone swapped the caption on purpose."""
    if not source.swapped:
        return np.zeros(len(scored.rows), dtype=bool)
    return np.array([uid in source.swapped for uid in scored.rows["uid"].to_pylist()])


def bins(values: NDArray[np.float64], threshold: float | None) -> tuple[list[float], int]:
    """Bins over all values, or over the middle 99% where a long tail would squeeze the rest to one bin; and how many
    values lie outside."""
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


def _mistakes(scored: Scored, source: Source, column: Column, cut: Cut) -> str:
    """Where swaps are known: those that a rule let through, and the clean pairs that it dropped."""
    if not source.swapped:
        return ""
    is_swapped = swapped_rows(scored, source)
    strips = []
    for title, belongs in (
        ("swapped, yet not dropped by this rule", is_swapped & ~cut.dropped),
        ("clean, yet dropped by this rule", ~is_swapped & cut.dropped),
    ):
        found = np.flatnonzero(belongs[column.rows])
        chosen = np.array(
            evenly(found[np.argsort(column.values[found], kind="stable")].tolist(), len(SHORT)), dtype=np.int64
        )
        labels, rows = [number(value) for value in column.values[chosen]], column.rows[chosen]
        strips.append(strip(source, scored.uids(rows), labels, f"{title}: {len(found):,}", scored.stems(rows)))
    return "".join(strips)


def _words(scored: Scored, cuts: dict[str, list[Cut]]) -> str:
    figures = "".join(_word_bars(scored, title, cuts.get(title, [])) for title in scored.words)
    return f'<div class="grid">{figures}</div>' if figures else ""


def _word_bars(scored: Scored, title: str, cuts: list[Cut]) -> str:
    """The most frequent values of a column of words or truths, with their shares of the pairs that have one."""
    values = scored.rows[title].drop_null()
    if not len(values):
        return ""
    counts = pc.value_counts(values.combine_chunks()).to_pylist()
    counts.sort(key=lambda one: (-one["counts"], str(one["values"])))
    notes = "".join(f'<p class="note">rule <b>{escape(c.rule)}</b>: {escape(c.words)}</p>' for c in cuts)
    shown = MAX_WORDS if 2 * len(counts) <= len(values) + MAX_WORDS else FEW_WORDS
    rows = "".join(_word_bar(one["values"], one["counts"], len(values)) for one in counts[:shown])
    others = sum(one["counts"] for one in counts[shown:])
    note = f'<p class="note">{len(counts) - shown:,} other values: {others:,} pairs.</p>' if others else ""
    table = f'<table class="bars words"><tbody>{rows}</tbody></table>'
    return f"<figure><figcaption>{escape(title)}</figcaption>{notes}{table}{note}</figure>"


def _word_bar(value: object, count: int, total: int) -> str:
    word = {True: "yes", False: "no", "": "(empty)"}.get(value, str(value)) if value is not None else ""
    shown = word if len(word) <= 60 else word[:59] + "…"
    return (
        f'<tr><th scope="row">{escape(shown)}</th><td class="wide">{bar(count / total)}</td>'
        f'<td class="n">{count:,}</td><td class="n">{100 * count / total:.1f}%</td></tr>'
    )
