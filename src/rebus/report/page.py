"""One self-contained HTML page: no script, no link to anywhere, pictures inside."""

from html import escape
from typing import Any

from rebus.report.gather import Way, read_targets
from rebus.report.results import headline_eval
from rebus.report.score_sample import read_scored
from rebus.report.section_agreement import agreement_section
from rebus.report.section_curation import twins_section
from rebus.report.section_data import funnel_section, packs_section, quarantine_section
from rebus.report.section_made import limits_section, made_section, tiles_section
from rebus.report.section_model import answers_section, eval_section
from rebus.report.section_scores import scores_section
from rebus.report.section_sources import networks_section, sources_section
from rebus.report.section_training import training_section
from rebus.report.style import CSS, HATCH
from rebus.version import __version__

MISSING = {
    "headline": "",
    "funnel": "No selection in this folder: nothing was dropped by rules.",
    "damage": "No damaged sample was found, or there are no shards in this folder.",
    "scores": "No scores in this folder.",
    "agreement": "No two scored columns in this folder: nothing to compare.",
    "packs": "No plan in this folder.",
    "training": "No checkpoint with metrics.jsonl in this folder.",
    "evaluation": "No evaluation in this folder.",
    "answers": "No answers to show: there is no evaluation in this folder.",
    "made": "",
    "limits": "",
}
"""What stands in the place of a section without content; one that is not named here is left out then."""


def build_page(way: Way, results: dict[str, Any]) -> str:
    """The page for a way and its numbers; a section whose artifact is missing says so in one line."""
    pools = [scored for scored in map(read_scored, way.of_kind("scores")) if scored]
    candidates = (
        ("headline", "In numbers", "", tiles_section(results, read_targets(way.folder))),
        ("sources", "Downloads and copies", "", sources_section(way)),
        ("funnel", "What was dropped, and why", "", funnel_section(way)),
        ("twins", "Near-duplicates, and what is in benchmarks", "", twins_section(way)),
        (
            "damage",
            "Damaged samples",
            "Counted and listed in quarantine files, never trained on.",
            quarantine_section(way),
        ),
        (
            "scores",
            "How the pool scores",
            "Pairs stand by each figure, with their score above their caption.",
            scores_section(way, pools),
        ),
        ("agreement", "How far scorers agree", "", agreement_section(way, pools)),
        ("networks", "Filter networks", "", networks_section(way)),
        ("packs", "How full the packs are", "", packs_section(way)),
        ("training", "How it learned", "", training_section(way)),
        ("evaluation", "What it knows", "", eval_section(way)),
        ("answers", "What it answers", "", answers_section(way, headline_eval(way))),
        (
            "made",
            "How it was made",
            "Each artifact with the fingerprint of what made it; open one for its recipe.",
            made_section(way),
        ),
        ("limits", "What this does not show", "", limits_section(way, results)),
    )
    sections = tuple(one for one in candidates if one[3] or one[0] in MISSING)
    links = "".join(f'<a href="#{anchor}">{title}</a>' for anchor, title, _, _ in sections[1:])
    body = "".join(_section(*section) for section in sections)
    name = escape(way.folder.resolve().name)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Rebus: {name}</title><style>{CSS}</style></head><body>{HATCH}<main>"
        f'<h1>Rebus: {name}</h1><p class="note">The way from raw pairs to answers, as its artifacts tell it.</p>'
        f"<nav>{links}</nav>{body}<footer>Made by rebus {__version__}: <code>rebus report "
        f"{escape(str(way.folder))}</code></footer></main></body></html>\n"
    )


def _section(anchor: str, title: str, lead: str, body: str) -> str:
    content = body or f'<p class="missing">{MISSING[anchor]}</p>'
    lead = f'<p class="note">{lead}</p>' if lead and body else ""
    return f'<section id="{anchor}"><h2>{title}</h2>{lead}{content}</section>'
