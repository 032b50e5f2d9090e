"""Artifacts know themselves: every artifact folder carries manifest.json, written last, with the fingerprint of
what made it. No manifest, no artifact: a killed stage leaves none, so what lies there is never mistaken for whole.
"""

import datetime
import hashlib
import json
import os
import shutil
import threading
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rebus.errors import DataError, StrangerError
from rebus.version import __version__

MANIFEST = "manifest.json"
BUILDING = ".building"


@dataclass(frozen=True)
class Manifest:
    """What an artifact is and what made it.

    kind: shards, scores, selection, plan, run, weights or eval. made_by: the configuration that shaped it.
    inputs: name -> fingerprint of the artifacts read. facts: what a reader may rely on (counts, capacity ...).
    """

    kind: str
    made_by: dict[str, Any]
    inputs: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        return fingerprint({"kind": self.kind, "made_by": self.made_by, "inputs": self.inputs})


def fingerprint(value: Any) -> str:
    """SHA-256 (first 32 hex digits) of a JSON-able value in canonical form."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


def file_fingerprint(path: Path) -> str:
    """SHA-256 (first 32 hex digits) of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


def folder_fingerprint(folder: Path, pattern: str = "*") -> str:
    """Fingerprint of the names and bytes of the files in a folder (not its subfolders), manifest excluded."""
    files = sorted(path for path in folder.glob(pattern) if path.is_file() and path.name != MANIFEST)
    return fingerprint({path.name: file_fingerprint(path) for path in files})


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file whole or not at all: to a temporary name beside it, synced, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")  # threads may write the same
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Declares the artifact in `folder` complete. Call it last."""
    body = {
        **asdict(manifest),
        "fingerprint": manifest.fingerprint,
        "rebus": __version__,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    write_atomically(folder / MANIFEST, json.dumps(body, indent=2, ensure_ascii=False, default=str) + "\n")


def read_manifest(folder: Path, kind: str) -> Manifest:
    """Reads the manifest of an artifact of the wanted kind.

    Raises: DataError where there is no finished artifact, StrangerError where it is of another kind.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        state = "is not finished: it has no manifest.json" if Path(folder).is_dir() else "does not exist"
        raise DataError(f"{folder} {state}. Make it first with the verb that writes {kind} (see `rebus --help`).")
    try:
        body = json.loads(path.read_text())
        manifest = Manifest(body["kind"], body["made_by"], body["inputs"], body["facts"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not a manifest ({error}). Delete {folder} and make it again.") from error
    if manifest.kind != kind:
        raise StrangerError(f"{folder} holds {manifest.kind}, but {kind} is wanted here.")
    return manifest


def is_current(folder: Path, manifest: Manifest) -> bool:
    """True if `folder` already holds exactly the artifact that `manifest` describes, whole."""
    path = Path(folder) / MANIFEST
    if not path.is_file():
        return False
    try:
        return json.loads(path.read_text()).get("fingerprint") == manifest.fingerprint
    except ValueError:
        return False


def refuse_stranger(folder: Path, expected: dict[str, Any], found: dict[str, Any], remedy: str) -> None:
    """Raises StrangerError that lists every expected entry that `found` lacks or has otherwise; else returns."""
    rows = [
        f"  {name}: expected {want!r}, found {found.get(name)!r}"
        for name, want in expected.items()
        if found.get(name) != want
    ]
    if rows:
        raise StrangerError("\n".join([f"{folder} was made by something else:", *rows, remedy]))


def prepare_out(out: Path, manifest: Manifest) -> None:
    """Makes `out` ready for the build that `manifest` describes.

    What an interrupted build of the same thing left is kept, so the build goes on; anything else that Rebus made
    there is removed. A folder that Rebus did not make, or that holds an artifact of another kind, is refused.
    """
    marker = out / BUILDING
    for rest in out.glob(f".{BUILDING}.*.tmp"):  # killed before it could say that the folder is its own
        rest.unlink(missing_ok=True)
    if is_begun(out, manifest):
        for rest in out.rglob(".*.tmp"):  # what write_atomically could not finish when it was killed
            rest.unlink(missing_ok=True)
        (out / MANIFEST).unlink(missing_ok=True)
        return
    if holds_other(out, manifest.kind):
        discard(out)
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(marker, manifest.fingerprint)


def is_begun(out: Path, manifest: Manifest) -> bool:
    """Whether `out` holds what an interrupted build of the same thing left."""
    marker = out / BUILDING
    return marker.is_file() and marker.read_text().strip() == manifest.fingerprint


def holds_other(out: Path, kind: str) -> bool:
    """Whether another build of this kind lies in `out`, which a new one would remove.

    Raises: DataError where it holds anything that must not be removed.
    """
    if not out.is_dir() or not any(out.iterdir()):
        return False
    if not (out / BUILDING).is_file() and not (out / MANIFEST).is_file():
        raise DataError(f"{out} holds files that Rebus did not make. Choose another `out`, or empty that folder.")
    _refuse_precious(out, kind)
    return True


def _refuse_precious(out: Path, kind: str) -> None:
    """A mistyped `out` must not cost an artifact of another stage, nor tars that Rebus only indexed where they lay."""
    if not (out / MANIFEST).is_file():
        return
    try:
        found = json.loads((out / MANIFEST).read_text())
    except ValueError:
        return
    if found.get("kind") != kind or found.get("facts", {}).get("in_place"):
        raise DataError(f"{out} holds {found.get('kind')} that this stage did not make. Choose another `out`.")


def discard(folder: Path) -> None:
    """Removes an artifact. Moved aside first: killed half-way, it leaves nothing that looks like one."""
    trash = folder.with_name(f".{folder.name}.trash")
    if trash.exists():
        shutil.rmtree(trash)
    if folder.exists():
        os.replace(folder, trash)
        shutil.rmtree(trash)
