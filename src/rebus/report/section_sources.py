"""Where pairs came from and what was made of them: downloads with their failures, resharded copies, filter networks."""

from collections import Counter
from html import escape
from typing import Any

from rebus.report.curves import Row, Series, curves, legend
from rebus.report.figures import bar
from rebus.report.gather import Artifact, Way, read_json, read_lines
from rebus.report.results import evenly
from rebus.report.section_training import MAX_DOTS, MAX_POINTS, moving_mean, smoothing_window

MISMATCHES = "mismatches.json"
RESHARDED = (
    ("num_read", "samples read"),
    ("num_kept", "of them named by the subset"),
    ("num_copies", "copies beyond the first"),
    ("num_missing", "uids of the subset that no shard has"),
    ("num_damaged", "damaged while writing"),
    ("num_samples", "samples written"),
    ("num_shards", "shards"),
)


def is_download(artifact: Artifact) -> bool:
    return artifact.manifest.kind == "shards" and artifact.manifest.made_by.get("source") == "urls"


def sources_section(way: Way) -> str:
    """Downloads and resharded copies; empty where there are none."""
    shards = way.of_kind("shards")
    downloads = "".join(_download(one) for one in shards if is_download(one))
    return downloads + "".join(_reshard(one) for one in shards if one.manifest.made_by.get("source") == "reshard")


def _download(shards: Artifact) -> str:
    """What became of the rows, by reason, over all shards. A row that was asked for again counts each time."""
    reasons: Counter[str] = Counter()
    for path in sorted(shards.folder.glob("*_stats.json")):
        reasons.update(read_json(path).get("status_dict", {}))
    total = sum(reasons.values())
    rows = "".join(
        f'<tr><th scope="row">{escape(reason)}</th><td class="wide">'
        f"{bar(count / total, style='bar-a' if reason == 'success' else 'bar-b')}</td>"
        f'<td class="n">{count:,}</td><td class="n">{100 * count / total:.1f}%</td></tr>'
        for reason, count in sorted(reasons.items(), key=lambda one: (one[0] != "success", -one[1], one[0]))
    )
    note = f"{total:,} rows asked for, {reasons['success']:,} pictures came. Rows asked for again count again."
    return (
        f'<figure><figcaption>downloaded: {escape(shards.name)}</figcaption><p class="note">{note}</p>'
        f'<table class="bars"><thead><tr><th>outcome</th><th class="wide"></th><th class="n">rows</th>'
        f'<th class="n">share</th></tr></thead><tbody>{rows}</tbody></table></figure>'
    )


def _reshard(shards: Artifact) -> str:
    facts = shards.manifest.facts
    rows = "".join(
        f'<tr><th scope="row">{words}</th><td class="n">{facts[name]:,}</td></tr>'
        for name, words in RESHARDED
        if isinstance(facts.get(name), int)
    )
    title = f"<figcaption>resharded: {escape(shards.name)}</figcaption>"
    return f"<figure>{title}<table><tbody>{rows}</tbody></table></figure>"


def networks_section(way: Way) -> str:
    """Filter networks trained here: how well they tell planted mismatches, and how their loss fell."""
    networks = [a for a in way.of_kind("weights") if a.manifest.made_by.get("kind") == "dual_encoder"]
    return "".join(_network(network) for network in networks)


def _network(network: Artifact) -> str:
    facts = network.manifest.facts
    note = f"{facts.get('num_pairs', 0):,} pairs to learn from, {facts.get('num_steps', 0):,} steps"
    return (
        f'<h3>{escape(network.name)}</h3><p class="note">{note}.</p>'
        f'<div class="grid"><figure>{_auc_table(network, facts)}</figure><figure>{_loss(network)}</figure></div>'
    )


def _auc_table(network: Artifact, facts: dict[str, Any]) -> str:
    path = network.folder / MISMATCHES
    if not path.is_file():
        return '<p class="note">Too few pairs were held out to measure mismatches.</p>'
    rows = "".join(
        f'<tr><th scope="row">seed {one["seed"]}</th>'
        f'<td class="wide">{bar(one["auc"], interval=(one["low"], one["high"]), mark=0.5)}</td>'
        f'<td class="n">{one["auc"]:.3f}</td><td class="n">{one["low"]:.3f} to {one["high"]:.3f}</td></tr>'
        for one in read_json(path)
    )
    note = (
        f"Area under the ROC curve on {facts.get('num_heldout', 0):,} held-out pairs, half of them planted mismatches; "
        f"mean {facts['auc']:.3f}. Dashed: chance. Whiskers: 95%, bootstrap."
    )
    head = '<thead><tr><th>draw</th><th class="wide"></th><th class="n">AUC</th><th class="n">95%</th></tr></thead>'
    return (
        f"<figcaption>Right pairs told from mismatches</figcaption>"
        f'<table class="bars">{head}<tbody>{rows}</tbody></table><p class="note">{note}</p>'
    )


def _loss(network: Artifact) -> str:
    rows = [row for row in read_lines(network.folder / "metrics.jsonl") if "loss" in row]
    if not rows:
        return ""
    losses, window = [float(row["loss"]) for row in rows], smoothing_window(len(rows))
    steps = [row["step"] + 1.0 for row in rows]
    smooth = list(zip(steps, moving_mean(losses, [1] * len(losses), window), strict=True))
    dots = evenly(list(zip(steps, losses, strict=True)), MAX_DOTS)
    series = [Series(dots, "dots", "dots"), Series(evenly(smooth, MAX_POINTS), "line-a")]
    drawing = curves([Row("loss (nats)", series, 150)], x_label="step", title="Loss of the filter network")
    keys = legend([("dots", "a step"), ("line-a", f"mean over {window} steps")] if window > 1 else [("dots", "a step")])
    return f"<figcaption>How its loss fell</figcaption>{keys}{drawing}"
