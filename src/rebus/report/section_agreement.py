"""The page's section on agreement: which scores order pairs alike, which rules keep the same, where scorers differ."""

import math
from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from rebus.report.agreement import Keeps, jaccard, ranks, spearman, used_columns, what_is_kept
from rebus.report.figures import bar
from rebus.report.gather import Way
from rebus.report.score_sample import Column, Scored
from rebus.report.section_scores import representatives
from rebus.report.strips import Source, source_of, strip

MAX_COLUMNS = 24  # of the matrix; more would not be read
NUM_QUARRELS = 4  # pairs of columns whose differences are shown
NUM_PAIRS = 6  # pictures on each side of one


def agreement_section(way: Way, pools: list[Scored]) -> str:
    return "".join(_agreement(way, scored, len(pools) > 1) for scored in pools)


def _agreement(way: Way, scored: Scored, named: bool) -> str:
    selections = way.standing_on("selection", scored.scores)
    chosen = _chosen(scored, used_columns(selections))
    keeps = [
        kept
        for shards in way.inputs_of(scored.scores, "shards")[:1]
        for kept in what_is_kept(shards, scored.scores, selections)
    ]
    body = _correlations(scored) + _overlaps(keeps) + _quarrels(scored, source_of(way, scored.scores), chosen)
    return (f"<h3>{escape(scored.scores.name)}</h3>" if named and body else "") + body


def _varying(scored: Scored) -> list[Column]:
    return [column for column in scored.numbers if not column.is_constant]


def _chosen(scored: Scored, used: set[str]) -> list[Column]:
    """The columns that rules use; of a scorer that no rule uses, the one that tells pairs apart best."""
    ruled = [column for column in _varying(scored) if {column.title, column.name} & used]
    scorers = {column.scorer for column in ruled}
    return [*ruled, *(column for column in representatives(scored) if column.scorer not in scorers)]


def _correlations(scored: Scored) -> str:
    columns = _varying(scored)
    if len(columns) < 2:
        return ""
    left_out = f" The first {MAX_COLUMNS} of {len(columns)} columns." if len(columns) > MAX_COLUMNS else ""
    columns = columns[:MAX_COLUMNS]
    table = heat_map([column.title for column in columns], spearman(columns, len(scored.rows)))
    note = (
        "Rank correlation (Spearman) of every two columns over the pairs that have both: 1 orders the pairs alike, 0 "
        f"has nothing to do with the other, -1 turns the order round.{left_out} {scored.note}"
    )
    return f'<figure><figcaption>Which scores agree</figcaption><p class="note">{note.strip()}</p>{table}</figure>'


def heat_map(names: Sequence[str], values: NDArray[np.float64]) -> str:
    """[k, k] values of -1..1 with their numbers; orange below 0, blue above; columns are called by their number."""
    heads = "".join(f'<th scope="col" title="{escape(name, quote=True)}">{i}</th>' for i, name in enumerate(names, 1))
    rows = "".join(
        f'<tr><th scope="row"><span class="q">{i}</span> {escape(name)}</th>'
        f"{''.join(_cell(value, i - 1 == j) for j, value in enumerate(row))}</tr>"
        for i, (name, row) in enumerate(zip(names, values, strict=True), 1)
    )
    head = f"<thead><tr><th></th>{heads}</tr></thead>"
    return f'<div class="scroll"><table class="heat">{head}<tbody>{rows}</tbody></table></div>'


def _cell(value: float, is_own: bool) -> str:
    if is_own:
        return '<td class="own"></td>'
    if math.isnan(value):
        return '<td class="own">?</td>'
    shown = f"{value:.2f}".replace("0.", ".", 1) if abs(value) < 0.995 else f"{value:.0f}"
    shown = ".00" if shown == "-.00" else shown
    return f'<td class="{"below" if value < 0 else "above"}" style="--r:{min(abs(value), 1):.2f}">{shown}</td>'


def _overlaps(keeps: list[Keeps]) -> str:
    if len(keeps) < 2:
        return ""
    names = [one.name for one in keeps]
    total = max(len(keeps[0].kept), 1)
    rows = "".join(
        f'<tr><th scope="row">{escape(one.name)}</th><td class="wide">{bar(one.kept.sum() / total)}</td>'
        f'<td class="n">{int(one.kept.sum()):,}</td><td class="n">{100 * one.kept.sum() / total:.1f}%</td></tr>'
        for one in keeps
    )
    values = np.array([[jaccard(a.kept, b.kept) for b in keeps] for a in keeps])
    note = (
        f"Each rule by itself over all {total:,} pairs that are whole, whatever stands before it. In the second table: "
        "of what one of two keeps, the share that both keep (Jaccard)."
    )
    return (
        f'<figure><figcaption>Which rules keep the same</figcaption><p class="note">{note}</p>'
        f'<table class="bars"><thead><tr><th>rule</th><th class="wide">kept by it alone</th><th class="n">pairs</th>'
        f'<th class="n">share</th></tr></thead><tbody>{rows}</tbody></table>{heat_map(names, values)}</figure>'
    )


def _quarrels(scored: Scored, source: Source, columns: list[Column]) -> str:
    """Pairs that stand high by one scorer and low by another, for the columns chosen: first for the two that agree
    best otherwise, since it is between those that a difference says something."""
    couples = [(i, j) for j in range(len(columns)) for i in range(j) if columns[i].scorer != columns[j].scorer]
    agreement = np.nan_to_num(spearman(columns, len(scored.rows)), nan=-1.0)
    couples.sort(key=lambda couple: -agreement[couple])
    body = "".join(_quarrel(scored, source, columns[i], columns[j]) for i, j in couples[:NUM_QUARRELS])
    if not body:
        return ""
    note = (
        "The pairs whose places in the two orders are farthest apart. A place is the share of pairs that are lower: "
        "0% is the lowest of all. Scorers that agree best on the rest come first."
    )
    return f'<h3>Where scorers disagree most</h3><p class="note">{note}</p>{body}'


def _quarrel(scored: Scored, source: Source, a: Column, b: Column) -> str:
    both, of_a, of_b = np.intersect1d(a.rows, b.rows, assume_unique=True, return_indices=True)
    if len(both) < 2 * NUM_PAIRS:
        return ""
    above_a, above_b = (ranks(c.values[of]) / (len(both) - 1) for c, of in ((a, of_a), (b, of_b)))
    order = np.argsort(above_a - above_b, kind="stable")
    sides = ((order[::-1][:NUM_PAIRS], a, above_a, b, above_b), (order[:NUM_PAIRS], b, above_b, a, above_a))
    strips = []
    for places, high, above_high, low, above_low in sides:
        labels = [f"{100 * above_high[place]:.0f}%, {100 * above_low[place]:.0f}%" for place in places]
        rows, title = both[places], f"high by {high.title}, low by {low.title}"
        strips.append(f"<div>{strip(source, scored.uids(rows), labels, title, scored.stems(rows))}</div>")
    title = f"{escape(a.title)} and {escape(b.title)}"
    return f'<figure class="sides"><figcaption>{title}</figcaption>{"".join(strips)}</figure>'
