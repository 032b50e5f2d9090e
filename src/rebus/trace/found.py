"""The artifacts of one or several ways: found by their manifests, in the folders given and where their recipes lead."""

import json
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rebus.errors import DataError
from rebus.fingerprint import MANIFEST, Manifest
from rebus.log import say

DEPTH = 2  # a list of data sets has its shards folders one level deeper than the others


@dataclass(frozen=True)
class Artifact:
    """fingerprint: None of a run that is not finished: it has no manifest yet. recipe: as it lies in the folder."""

    folder: Path
    manifest: Manifest
    fingerprint: str | None
    recipe: dict[str, Any]

    @property
    def kind(self) -> str:
        return self.manifest.kind


@dataclass(frozen=True)
class Ways:
    artifacts: tuple[Artifact, ...]

    def of_kind(self, kind: str) -> list[Artifact]:
        return [artifact for artifact in self.artifacts if artifact.kind == kind]

    def made(self, fingerprint: str | None) -> Artifact | None:
        """The artifact of a fingerprint; None where it is not here any more."""
        return next((one for one in self.artifacts if fingerprint and one.fingerprint == fingerprint), None)


def find_ways(folders: Sequence[Path]) -> Ways:
    """Raises: DataError where a folder is none, or holds no artifact."""
    found: dict[Path, Artifact] = {}
    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"no folder at {folder}. Give a folder that holds artifacts, such as runs/demo, or one.")
        here = {path.resolve(): artifact for path, artifact in _inside(folder, DEPTH)}
        if not here:
            raise DataError(f"{folder} holds no artifact: no {MANIFEST} is there. Run a stage first.")
        found |= here
    _follow(found)
    return Ways(tuple(found.values()))


def _inside(folder: Path, depth: int) -> Iterator[tuple[Path, Artifact]]:
    """The artifact that a folder is, else those in it. An artifact's own folders hold none."""
    artifact = open_artifact(folder)
    if artifact is not None:
        yield folder, artifact
    elif depth:
        for child in sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != "."):
            yield from _inside(child, depth - 1)


def _follow(found: dict[Path, Artifact]) -> None:
    """Adds the artifacts that recipes name, and those that the recipes of these name."""
    left = deque(found.values())
    while left:
        for path in _paths(left.popleft().recipe):
            if path.resolve() not in found and (artifact := open_artifact(path)) is not None:
                found[path.resolve()] = artifact
                left.append(artifact)


def _paths(value: Any) -> list[Path]:
    """Every text in a recipe that is the path of a folder."""
    if isinstance(value, dict):
        return [path for child in value.values() for path in _paths(child)]
    if isinstance(value, list):
        return [path for child in value for path in _paths(child)]
    return [Path(value)] if isinstance(value, str) and 0 < len(value) < 4096 and Path(value).is_dir() else []


def open_artifact(folder: Path) -> Artifact | None:
    """None where a folder is neither an artifact nor a run that has begun."""
    if (folder / MANIFEST).is_file():
        try:
            body = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            manifest = Manifest(body["kind"], body["made_by"], body["inputs"], body["facts"])
        except (ValueError, KeyError, TypeError) as error:
            say(f"left out {folder}: its {MANIFEST} cannot be read ({error})")
            return None
        return Artifact(folder, manifest, manifest.fingerprint, _recipe(folder))
    if (folder / "metrics.jsonl").is_file() and (folder / "recipe.yaml").is_file():
        return Artifact(folder, Manifest("checkpoint", {}), None, _recipe(folder))
    return None


def _recipe(folder: Path) -> dict[str, Any]:
    path = folder / "recipe.yaml"
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (yaml.YAMLError, UnicodeDecodeError):
        return {}
    return tree if isinstance(tree, dict) else {}
