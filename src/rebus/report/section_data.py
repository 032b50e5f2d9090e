"""The page's sections on data: what was dropped, what was damaged, how full the packs are."""

from collections import Counter
from html import escape

import numpy as np
import pyarrow as pa

from rebus.report.figures import Outline, columns, histogram, two_part_bar
from rebus.report.gather import Artifact, Way, read_json
from rebus.report.results import evenly, quarantine_of
from rebus.report.rule_words import words_of
from rebus.report.section_curation import boundary_pictures
from rebus.report.section_scores import bins
from rebus.report.section_sources import is_download

MAX_COLUMNS = 200  # packs that are drawn one by one; more would be thinner than a pixel


def funnel_section(way: Way) -> str:
    selections = way.of_kind("selection")
    return "".join(_funnel(way, selection, len(selections) > 1) for selection in selections)


def _funnel(way: Way, selection: Artifact, named: bool) -> str:
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
        f"{boundary_pictures(way, selection)}"
    )


def _cuts_in_words(selection: Artifact) -> str:
    rules = selection.manifest.made_by.get("rules", [])
    counts = selection.manifest.facts.get("counts", {})
    words = [
        f"<li><b>{escape(rule['name'])}</b>: {escape(words_of(rule))}{_counted(counts.get(rule['name'], {}))}</li>"
        for rule in rules
    ]
    return f'<ul class="plain">{"".join(words)}</ul>' if words else ""


def _counted(counts: dict[str, int]) -> str:
    """What a rule reported beside what it dropped."""
    return f" ({escape(', '.join(f'{count:,} {words}' for words, count in counts.items()))})" if counts else ""


def quarantine_section(way: Way) -> str:
    """Samples that could not be used, by the artifact whose making found them and by reason. What a download did not
    get has a section of its own."""
    counts = Counter(
        (artifact.name, str(row.get("reason", "")))
        for artifact in way.artifacts
        if artifact.manifest.kind in ("shards", "scores", "plan") and not is_download(artifact)
        for row in quarantine_of(artifact)
    )
    rows = "".join(
        f'<tr><th scope="row">{escape(reason)}</th><td>{escape(name)}</td><td class="n">{count:,}</td></tr>'
        for (name, reason), count in counts.items()
    )
    head = '<thead><tr><th>reason</th><th>found while making</th><th class="n">samples</th></tr></thead>'
    return f"<table>{head}<tbody>{rows}</tbody></table>" if rows else ""


def packs_section(way: Way) -> str:
    figures = [_pack_figures(plan) for plan in way.of_kind("plan")]
    return f'<div class="grid">{"".join(figures)}</div>' if figures else ""


def _pack_figures(plan: Artifact) -> str:
    with pa.memory_map(str(plan.folder / "plan.arrow")) as source:
        table = pa.ipc.open_file(source).read_all()
    facts = plan.manifest.facts
    packs, lengths = table["pack"].to_numpy(), table["num_tokens"].to_numpy()
    fills = np.bincount(packs, weights=lengths) / facts["capacity"]
    edges, _ = bins(lengths.astype(np.float64), None)
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
