"""What selecting did, in pictures: both sides of each rule near where it turns, near-duplicates, benchmark pictures."""

from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rebus.report.figures import Outline, histogram, number
from rebus.report.gather import Artifact, Way
from rebus.report.pictures import Example, eval_picture
from rebus.report.results import evenly
from rebus.report.score_sample import examples_of
from rebus.report.section_scores import bins
from rebus.report.strips import SMALL, Source, cell, source_of, strip

AT_BOUNDARY = 6  # pairs on each side of a rule
NUM_TWINS = 8  # near-duplicates shown of each rule
MAX_LOOKS = 6  # rules over duplicates of a selection
MAX_RULES = 24  # shown in pictures over all selections: 12 pictures each, about 50 kB of photos


def boundary_pictures(way: Way, selection: Artifact) -> str:
    """For each rule that dropped something, pairs of both sides: the nearest to where it turns."""
    source = source_of(way, selection)
    found = [(name, one) for name, one in examples_of(selection).items() if one["dropped"]]
    limit = max(2, MAX_RULES // max(len(way.of_kind("selection")), 1))
    rules = "".join(_two_sides(source, name, one) for name, one in found[:limit])
    if not rules:
        return ""
    words = f"the first {limit} of {len(found)} rules" if len(found) > limit else "each rule"
    return f"<details open><summary>Either side of {words}, in pictures</summary>{rules}</details>"


def _two_sides(source: Source, name: str, example: dict[str, Any]) -> str:
    sides = "".join(_side(source, example[side], side) for side in ("kept", "dropped"))
    return f'<figure class="sides"><figcaption>{escape(name)}</figcaption>{sides}</figure>'


def _side(source: Source, pairs: list[dict[str, Any]], words: str) -> str:
    """A rule that compares no numbers turns nowhere: its samples are a draw."""
    shown = pairs[:AT_BOUNDARY]
    has_numbers = any(isinstance(pair["value"], (int, float)) for pair in shown)
    title = f"{words}, nearest to where the rule turns" if has_numbers else f"{words}, drawn by uid"
    labels = [_value(pair["value"]) for pair in shown]
    stems = {Path(pair["shard"]).stem for pair in shown}
    if not shown:
        return f'<div><p class="note">{words}: none</p></div>'
    return f"<div>{strip(source, [pair['uid'] for pair in shown], labels, title, stems)}</div>"


def _value(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value) or "(empty)"
    return number(value) if value == round(value) else f"{value:.5g}"  # neighbours differ in the last digits


def twins_section(way: Way) -> str:
    """Near-duplicates side by side, and pictures that are in an evaluation set; empty where no rule looked."""
    selections = [s for s in way.of_kind("selection") if (s.folder / "pairs.parquet").is_file()]
    return "".join(_twins_of(way, selection, len(selections) > 1) for selection in selections)


def _twins_of(way: Way, selection: Artifact, named: bool) -> str:
    table = pq.read_table(selection.folder / "pairs.parquet")
    rules = pc.unique(table["rule"]).to_pylist()
    parts = [_twins(way, selection, name, table.filter(pc.equal(table["rule"], name))) for name in rules[:MAX_LOOKS]]
    if len(rules) > MAX_LOOKS:
        parts.append(f'<p class="note">The first {MAX_LOOKS} of {len(rules)} rules.</p>')
    return (f"<h3>{escape(selection.name)}</h3>" if named and parts else "") + "".join(parts)


def _twins(way: Way, selection: Artifact, name: str, pairs: pa.Table) -> str:
    source = source_of(way, selection)
    rule: dict[str, Any] = next((one for one in selection.manifest.made_by.get("rules", []) if one["name"] == name), {})
    shown = from_near_to_far(pairs)
    rows = [row for row in shown.to_pylist() if row["dropped"]]
    uids = [uid for row in rows for uid in (row["dropped"], row["kept"]) if uid]
    stems = {Path(row[f"{side}_shard"]).stem for row in rows for side in ("dropped", "kept") if row[side]}
    examples = source.load(uids, stems)
    cards = "".join(_card(source, rule, examples, row) for row in rows)
    is_eval = rule.get("rule") == "unseen"
    what = "have a picture that is in an evaluation set" if is_eval else "were dropped for another that stays"
    note = f"{len(pairs):,} pairs {what}; shown from the nearest to the farthest."
    return (
        f'<figure><figcaption>{escape(name)}</figcaption><p class="note">{note}</p>'
        f'<ul class="twins">{cards}</ul>{_distances(rule, pairs)}</figure>'
    )


def from_near_to_far(pairs: pa.Table) -> pa.Table:
    """A few rows at even places of their order by distance, among equal ones by uid."""
    order = pc.sort_indices(pairs, [("distance", "ascending"), ("dropped", "ascending")]).to_numpy()
    return pairs.take(pa.array(evenly(order, NUM_TWINS), pa.int64()))


def _card(source: Source, rule: dict[str, Any], examples: dict[str, Example], row: dict[str, Any]) -> str:
    left = cell(source, examples, row["dropped"], "dropped")
    if row["kept"]:
        right = cell(source, examples, row["kept"], "stays")
    else:
        uri = eval_picture(row["kept_shard"], [Path(folder) for folder in rule.get("evals", [])], SMALL)
        picture = f'<img src="{uri}" alt="" loading="lazy">' if uri else "no picture"
        right = (
            f'<li>{picture}<span class="q">evaluation set</span>'
            f'<span class="caption">{escape(row["kept_shard"])}</span></li>'
        )
    return f'<li><ol class="strip">{left}{right}</ol><p class="note">{_apart(rule, row["distance"])}</p></li>'


def _apart(rule: dict[str, Any], distance: float) -> str:
    by = rule.get("by")
    if by == "perceptual":
        return f"{distance:.0f} bit{'s' if distance != 1 else ''} of 64 apart"
    if by == "embedding":
        return f"cosine {1 - distance:.3f}"
    return {"text": "the same words", "uid": "the same uid", "exact": "the same bytes"}.get(str(by), "")


def _distances(rule: dict[str, Any], pairs: pa.Table) -> str:
    """How far apart the pairs are; nothing where a rule asks for equality."""
    values = pairs["distance"].to_numpy().astype(np.float64)
    if rule.get("by") not in ("perceptual", "embedding") or not len(values) or values.min() == values.max():
        return ""
    edges, _ = bins(values, None)
    outline = Outline("all", "outline-a", np.histogram(values, edges)[0].tolist())
    words = "bits apart" if rule["by"] == "perceptual" else "1 - cosine"
    return histogram(edges, [outline], x_label=words, y_label="pairs", height=180)
