"""Finds what a run left: artifacts by what their manifests say, never by a folder's name."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from rebus.errors import DataError, RebusError
from rebus.fingerprint import MANIFEST, Manifest, read_manifest
from rebus.log import say
from rebus.shards.index import DUPLICATE_KEY

KINDS = ("shards", "scores", "selection", "weights", "plan", "checkpoint", "eval")
"""In the order of the data; it decides between artifacts that do not stand on one another."""

ARTIFACT_INPUTS = ("shards", "scores", "selection", "plan", "init", "model")
"""Names under which manifests list the artifacts that they read (`shards/0` too); other inputs are plain files."""


@dataclass(frozen=True)
class Artifact:
    """A finished artifact's folder and what its manifest says."""

    folder: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        return self.folder.name

    @cached_property
    def fingerprint(self) -> str:
        return self.manifest.fingerprint

    @cached_property
    def recipe_text(self) -> str:
        """The resolved recipe as it lies in the folder; what shaped the artifact where there is no recipe."""
        path = self.folder / "recipe.yaml"
        if path.is_file():
            return path.read_text(encoding="utf-8")
        return yaml.safe_dump(self.manifest.made_by, sort_keys=False, allow_unicode=True)

    @cached_property
    def recipe(self) -> dict[str, Any]:
        tree = yaml.safe_load(self.recipe_text)
        return tree if isinstance(tree, dict) else {}


@dataclass(frozen=True)
class Command:
    """One finished command of clock.jsonl. seconds: wall clock."""

    name: str
    seconds: float
    peak_rss_gb: float
    cpu_seconds: float


@dataclass(frozen=True)
class Planted:
    """Faults that someone put into a pool on purpose. swapped: uids. damaged: (shard's stem, key) -> reason."""

    swapped: frozenset[str]
    damaged: dict[tuple[str, str], str]

    def spoils(self, shard: str, key: str) -> bool:
        """True if the sample that the index lists under this key is a damaged one. Of two samples with one key the
        index lists the first, which is whole."""
        return self.damaged.get((shard, key), DUPLICATE_KEY) != DUPLICATE_KEY


@dataclass(frozen=True)
class Way:
    """The artifacts of one folder, each after those that it stands on."""

    folder: Path
    artifacts: tuple[Artifact, ...]

    def of_kind(self, kind: str) -> list[Artifact]:
        return [artifact for artifact in self.artifacts if artifact.manifest.kind == kind]

    def standing_on(self, kind: str, source: Artifact) -> list[Artifact]:
        """The artifacts of a kind that read `source`."""
        return [a for a in self.of_kind(kind) if source.fingerprint in a.manifest.inputs.values()]

    def strangers_of(self, artifact: Artifact) -> list[str]:
        """Names of inputs whose artifact is neither in this folder nor where the recipe found it: it was made anew
        since, moved, or removed."""
        inputs = {name: fp for name, fp in artifact.manifest.inputs.items() if name.split("/")[0] in ARTIFACT_INPUTS}
        known = {a.fingerprint for kind in KINDS for a in self.inputs_of(artifact, kind)}
        return [name for name, fp in inputs.items() if fp not in known]

    def inputs_of(self, artifact: Artifact, kind: str) -> list[Artifact]:
        """The artifacts of a kind that `artifact` read: those in this folder, or where its recipe found them."""
        wanted = set(artifact.manifest.inputs.values())
        here = [a for a in self.of_kind(kind) if a.fingerprint in wanted]
        known = {a.fingerprint for a in here}
        elsewhere = [a for a in map(_open, _paths(artifact.recipe)) if a and a.manifest.kind == kind]
        return [*here, *(a for a in elsewhere if a.fingerprint in wanted - known)]


def find_way(folder: Path) -> Way:
    """Reads the manifests of the immediate subfolders. Raises: DataError where there is not one artifact."""
    if not folder.is_dir():
        raise DataError(f"no folder at {folder}. Give the folder that holds a run's artifacts, such as runs/demo.")
    found = [artifact for artifact in map(_open, sorted(folder.iterdir())) if artifact]
    if not found:
        raise DataError(
            f"{folder} holds no artifact: none of its {sum(path.is_dir() for path in folder.iterdir()):,} subfolders "
            f"has a {MANIFEST}. Run a stage first, or give the folder that its recipes name in `out`."
        )
    return Way(folder, _in_order(found))


def _open(folder: Path) -> Artifact | None:
    """The artifact in a folder; None where it is none, or is not finished."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        return Artifact(folder, read_manifest(folder, json.loads(path.read_text(encoding="utf-8"))["kind"]))
    except (RebusError, ValueError, KeyError, TypeError) as error:
        say(f"left out {folder}: {error}")
        return None


def _in_order(found: list[Artifact]) -> tuple[Artifact, ...]:
    """Inputs first (Kahn 1962); else by kind, then by name."""
    left = sorted(found, key=lambda a: (KINDS.index(a.manifest.kind) if a.manifest.kind in KINDS else 99, a.name))
    ordered: list[Artifact] = []
    while left:
        waiting = {a.fingerprint for a in left}
        ready = [a for a in left if not waiting & set(a.manifest.inputs.values()) - {a.fingerprint}]
        first = (ready or left)[0]
        ordered.append(first)
        left.remove(first)
    return tuple(ordered)


def _paths(value: Any) -> list[Path]:
    """Every text in a recipe that is the path of a folder."""
    if isinstance(value, dict):
        return [path for child in value.values() for path in _paths(child)]
    if isinstance(value, list):
        return [path for child in value for path in _paths(child)]
    return [Path(value)] if isinstance(value, str) and 0 < len(value) < 4096 and Path(value).is_dir() else []


def read_clock(folder: Path) -> list[Command]:
    """The finished commands of FOLDER/clock.jsonl in their order, earlier reports left out: each run of `report` adds a
    line, and its own numbers should not move. Empty where nothing kept time."""
    lines = [row for row in read_lines(folder / "clock.jsonl") if not str(row.get("name")).startswith("report ")]
    try:
        return [
            Command(str(r["name"]), float(r["seconds"]), float(r["peak_rss_gb"]), float(r["cpu_seconds"]))
            for r in lines
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{folder / 'clock.jsonl'}: a line lacks {error}. Delete the file and time again.") from error


def read_planted(shards: Artifact) -> Planted | None:
    """The faults planted in a pool; None where its shards folder has no planted.json."""
    path = shards.folder / "planted.json"
    if not path.is_file():
        return None
    body = read_json(path)
    try:
        damaged = {(Path(row["shard"]).stem, str(row["key"])): str(row["reason"]) for row in body["damaged"]}
        return Planted(frozenset(body["swapped"]), damaged)
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{path} lacks {error}. It must hold `swapped` (uids) and `damaged` (shard, key, reason)."
        ) from error


def read_targets(folder: Path) -> dict[str, dict[str, float]]:
    """FOLDER/targets.json: a result's name -> {"min": x} or {"max": x}; empty where nobody set any."""
    path = folder / "targets.json"
    return read_json(path) if path.is_file() else {}


def read_json(path: Path) -> Any:
    """Raises: DataError where the file is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not readable JSON ({error}). Make that artifact again.") from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; none where there is no file, and a line that a kill cut short ends it."""
    rows = []
    for line in path.read_text(encoding="utf-8").split("\n") if path.is_file() else []:  # only JSON's own line breaks
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows
