"""What was said of a sample: its scores, and the rules that kept or dropped it."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rebus.trace.found import Artifact, Ways
from rebus.trace.places import Named

PLAIN = ("shard", "row", "key", "uid", "kept", "dropped_by")


def scores_of(ways: Ways, named: Named) -> list[dict[str, Any]]:
    """Of each scores folder: scorer -> its columns, and whether the scorers could decode the sample."""
    return [found for artifact in ways.of_kind("scores") for found in _scores(artifact, named)]


def _scores(artifact: Artifact, named: Named) -> list[dict[str, Any]]:
    stems, note = _stems(artifact, named)
    found: dict[str, dict[str, Any]] = {}
    for stem in stems:
        for path in sorted(artifact.folder.glob(f"*/{stem}.parquet")):
            for row in _rows_of(path, named.uid):
                found[path.parent.name] = {name: value for name, value in row.items() if name not in ("uid", "key")}
    keys = {place.key for place in named.places} | {damage.key for _, damage in named.damages}
    damage = [row for stem in stems for row in _damages(artifact.folder / "quarantine" / f"{stem}.jsonl", keys)]
    if not found and not damage:
        return []
    return [{"scores": str(artifact.folder), "values": found, "damage": damage, "note": note}]


def _stems(artifact: Artifact, named: Named) -> tuple[list[str], str]:
    """Names of the tables that may know the sample: those of its shards; all, where these were scored elsewhere."""
    of_shards = artifact.manifest.inputs.get("shards")
    own = [place.shard.stem for place in named.places if place.artifact.fingerprint == of_shards]
    if own:
        return list(dict.fromkeys(own)), ""
    stems = {path.stem for path in artifact.folder.glob("*/*.parquet") if not path.stem.endswith(".vectors")}
    return sorted(stems), "made of other shards than those in which the sample was found; joined by uid"


def _rows_of(path: Path, uid: str) -> list[dict[str, Any]]:
    if not uid or "uid" not in pq.read_schema(path).names:
        return []
    rows: list[dict[str, Any]] = pq.read_table(path, filters=pc.field("uid") == uid).to_pylist()
    return rows


def _damages(path: Path, keys: set[str]) -> list[dict[str, Any]]:
    return [row for row in read_lines(path) if row.get("key") in keys]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; a line that a kill cut short ends it."""
    rows = []
    for line in path.read_text(encoding="utf-8").split("\n") if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def selections_of(ways: Ways, named: Named) -> list[dict[str, Any]]:
    """Of each selection that saw the sample: kept, or which rule dropped it and how that rule is set."""
    return [found for artifact in ways.of_kind("selection") for found in _selections(artifact, named)]


def _selections(artifact: Artifact, named: Named) -> list[dict[str, Any]]:
    table = artifact.folder / "selection.parquet"
    if not table.is_file():
        return []
    keys = pa.array([damage.key for _, damage in named.damages], pa.string())
    shards = pa.array([shard.name for shard, _ in named.damages], pa.string())
    is_bad = pc.field("key").isin(keys) & pc.field("shard").isin(shards) & (pc.field("uid") == "")
    wanted = (pc.field("uid") == named.uid) | is_bad if named.uid else is_bad
    rules = {str(rule.get("name")): rule for rule in _rules(artifact)}
    found = []
    for row in pq.read_table(table, filters=wanted).to_pylist():
        more = {name: value for name, value in row.items() if name not in PLAIN and value is not None}
        about = {name: row[name] for name in ("shard", "row", "kept", "dropped_by")}
        found.append({"selection": str(artifact.folder), **about, "rule": rules.get(row["dropped_by"]), **more})
    pairs = _pairs(artifact.folder / "pairs.parquet", named.uid)
    return [{**one, "duplicates": pairs} for one in found]


def _rules(artifact: Artifact) -> list[dict[str, Any]]:
    rules = artifact.recipe.get("rules") or artifact.manifest.made_by.get("rules") or []
    return [rule for rule in rules if isinstance(rule, dict)]


def _pairs(path: Path, uid: str) -> list[dict[str, Any]]:
    """Pairs of near-duplicates that the sample is one of. Columns `dropped` and `kept` hold uids."""
    if not uid or not path.is_file() or not {"dropped", "kept"} <= set(pq.read_schema(path).names):
        return []
    wanted = (pc.field("dropped") == uid) | (pc.field("kept") == uid)
    pairs: list[dict[str, Any]] = pq.read_table(path, filters=wanted).to_pylist()
    return pairs
