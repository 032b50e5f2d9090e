"""Any artifact in the terminal: the recipe that made it, what its manifest says, the newest row of its metrics."""

import json
from pathlib import Path
from typing import Any

import yaml

from rebus.fingerprint import MANIFEST
from rebus.log import say, show_table


def print_artifact(folder: Path) -> None:
    """The recipe that made it, what its manifest says, and the newest row of its metrics."""
    recipe = folder / "recipe.yaml"
    if recipe.is_file():
        show_table(f"{recipe}", ["key", "value"], _flat(yaml.safe_load(recipe.read_text())))
    if (folder / MANIFEST).is_file():
        body = json.loads((folder / MANIFEST).read_text())
        facts = {key: body[key] for key in ("kind", "fingerprint", "rebus", "created", "inputs")} | body["facts"]
        show_table(f"{folder}", ["fact", "value"], _flat(facts))
    else:
        say(f"{folder} is not finished: run the same command again, it goes on.")
    _show_rows(folder)


def _show_rows(folder: Path) -> None:
    metrics, funnel = folder / "metrics.jsonl", folder / "funnel.json"
    lines = metrics.read_text().splitlines() if metrics.is_file() else []
    if lines:
        show_table("last step", ["metric", "value"], _flat(json.loads(lines[-1])))
    if funnel.is_file():
        rows = json.loads(funnel.read_text())
        show_table("funnel", ["rule", "dropped", "left"], [(row["rule"], row["dropped"], row["left"]) for row in rows])


def _flat(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested mappings as dotted rows; long lists by their length."""
    rows = []
    for key, value in tree.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{key}.")
        else:
            long = isinstance(value, list) and len(value) > 8
            rows.append((f"{prefix}{key}", f"{len(value)} entries" if long else str(value)))
    return rows
