"""A training state on disk: one folder a step, whole or not there.

    states/step-000123/rank-00000.safetensors ...   each rank's rows; the header names the step and the first rows
                       index.json                   of every tensor: whole shape, dtype, pieces (rank, first, last row)
                       meta.json                    JSON values of the loop
                       manifest.json                size and fingerprint of every file; written last

It is built as `.step-000123.building` and renamed when it is whole.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from rebus.checkpoints.save import write_tensors
from rebus.checkpoints.state_rows import Rows, num_rows_of
from rebus.errors import DataError, RebusError
from rebus.fingerprint import Manifest, discard, fingerprint, read_manifest, write_atomically, write_manifest

INDEX, META = "index.json", "meta.json"
KIND = "state"


@dataclass(frozen=True)
class Piece:
    """Rows of a tensor, and the rank whose file holds them."""

    rank: int
    rows: Rows


@dataclass(frozen=True)
class Stored:
    """A whole tensor of a state: `dtype` by torch's name; pieces in the order of their rows, each row in one."""

    shape: tuple[int, ...]
    dtype: str
    pieces: tuple[Piece, ...] = ()

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


def described(tensor: torch.Tensor) -> Stored:
    """Shape (of the whole DTensor, too) and dtype; no pieces."""
    return Stored(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))


def step_folder(folder: Path, step: int) -> Path:
    return folder / f"step-{step:06d}"


def building_folder(folder: Path, step: int) -> Path:
    return folder / f".step-{step:06d}.building"


def step_of(path: Path) -> int:
    """The step that a folder's name tells, -1 where it tells none."""
    found = re.fullmatch(r"\.?step-(\d+)(\.building|\.trash)?", path.name)
    return int(found[1]) if found else -1


def step_folders(folder: Path) -> list[Path]:
    """Finished states in step order, by their names alone."""
    found = [path for path in folder.glob("step-*") if step_of(path) >= 0]
    return sorted(found, key=step_of)


def rank_file(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank:05d}.safetensors"


def write_rank(folder: Path, rank: int, step: int, tensors: dict[str, torch.Tensor], firsts: dict[str, int]) -> None:
    """One rank's rows, on disk when this returns. firsts: the first row of each piece.

    The step in the header makes the files of two steps differ in what the manifest fingerprints.
    Raises: DataError where the disk refuses.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        metadata = {"step": str(step), "rank": str(rank), "first_rows": json.dumps(firsts)}
        write_tensors(rank_file(folder, rank), tensors, metadata)
        sync_folder(folder)


def seal(building: Path, step: int, wholes: dict[str, Stored], meta: str, world: int) -> Path:
    """Makes a state of the files that all ranks wrote: index, meta, the manifest last, then the rename.

    wholes: every tensor, without pieces. Raises: DataError where a file or a row is missing, or the disk refuses.
    """
    headers = [_header_of_rank(building, rank, step) for rank in range(world)]
    index = {name: _with_pieces(name, whole, headers) for name, whole in wholes.items()}
    final = building.with_name(step_folder(building.parent, step).name)
    with disk_errors(building):
        write_atomically(building / INDEX, json.dumps({name: _to_json(whole) for name, whole in index.items()}) + "\n")
        write_atomically(building / META, meta)
        files = [building / INDEX, building / META, *(rank_file(building, rank) for rank in range(world))]
        facts = {"world": world, "files": {path.name: _proof(path) for path in files}}
        write_manifest(building, Manifest(KIND, {"step": step}, {}, facts))
        sync_folder(building)
        _rename_over(building, final)
    return final


def _rename_over(building: Path, final: Path) -> None:
    """What stood at `final` is moved aside before, removed after: a kill costs the removal at most."""
    trash = final.with_name(f".{final.name}.trash")
    if final.exists():
        shutil.rmtree(trash, ignore_errors=True)
        os.replace(final, trash)
    os.replace(building, final)
    sync_folder(final.parent)
    if trash.exists():
        shutil.rmtree(trash)


def _header_of_rank(building: Path, rank: int, step: int) -> dict[str, Any]:
    path = rank_file(building, rank)
    if not path.is_file():
        raise DataError(
            f"{path} is missing although rank {rank} wrote it. Is `out` on a file system that all nodes share? "
            f"Step {step} is not saved; older states are untouched."
        )
    header = json.loads(_header(path))
    firsts = json.loads(header.pop("__metadata__")["first_rows"])
    return {name: Rows(first, first + header[name]["shape"][0]) for name, first in firsts.items()}


def _with_pieces(name: str, whole: Stored, headers: list[dict[str, Rows]]) -> Stored:
    found = [Piece(rank, header[name]) for rank, header in enumerate(headers) if name in header]
    found.sort(key=lambda piece: piece.rows.first)
    at = 0
    for rows in [*(piece.rows for piece in found), Rows(num_rows_of(whole.shape), num_rows_of(whole.shape))]:
        if rows.first != at:
            what = "written by no rank" if rows.first > at else "written twice"
            raise DataError(
                f"{name} ({whole}): rows {min(at, rows.first)} to {max(at, rows.first)} are {what}, so the state would "
                "not be whole. Every rank must hand over the same names; older states are untouched."
            )
        at = rows.last
    return replace(whole, pieces=tuple(found))


def read_index(path: Path) -> dict[str, Stored]:
    """Raises: DataError where the index is not one."""
    try:
        index = json.loads((path / INDEX).read_text())
        return {name: _from_json(body) for name, body in index.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path / INDEX} is damaged ({error}). Remove {path}; an older state is used then.") from error


def _to_json(whole: Stored) -> dict[str, Any]:
    pieces = [[piece.rank, piece.rows.first, piece.rows.last] for piece in whole.pieces]
    return {"shape": list(whole.shape), "dtype": whole.dtype, "pieces": pieces}


def _from_json(body: dict[str, Any]) -> Stored:
    pieces = tuple(Piece(rank, Rows(first, last)) for rank, first, last in body["pieces"])
    return Stored(tuple(body["shape"]), body["dtype"], pieces)


def check_whole(path: Path) -> None:
    """Raises: DataError where a state lacks a file, or one is cut short or swapped; the message names it.

    Of a rank's file its size and the fingerprint of its header are compared, not its bytes: at 72 B parameters a
    state has near 1 TB, whose hashing would hold up every save and every start by minutes.
    """
    manifest = read_manifest(path, KIND)
    if manifest.made_by.get("step") != step_of(path):
        raise DataError(f"{path} holds step {manifest.made_by.get('step')}: it was renamed. Give it its name back.")
    for name, expected in manifest.facts.get("files", {}).items():
        found = _proof(path / name) if (path / name).is_file() else "no such file"
        if found != expected:
            raise DataError(f"{path / name} is not what was written (expected {expected}, found {found}).")
    if INDEX not in manifest.facts.get("files", {}):
        raise DataError(f"{path} was written by another version of Rebus, whose states this one does not read.")


def is_whole(path: Path) -> bool:
    try:
        check_whole(path)
    except RebusError:
        return False
    return True


def _proof(path: Path) -> dict[str, Any]:
    """Size in bytes, and the fingerprint of a tensor file's header or of all of a JSON file."""
    content = _header(path) if path.suffix == ".safetensors" else path.read_text()
    return {"bytes": path.stat().st_size, "fingerprint": fingerprint(content)}


def _header(path: Path) -> str:
    """A safetensors file begins with the length of its header in 8 bytes, little-endian; the header is JSON."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            raise DataError(f"{path} is not a tensor file: it ends before its header does.")
        return file.read(length).decode(errors="replace")


def prune(folder: Path, written: int, keep: int) -> None:
    """Of the steps up to `written` the last `keep` whole states stay; older ones, and what is not whole, go.

    Later steps are left alone: another rank may be at work there. Call it once `written` is whole.
    """
    older = [path for path in step_folders(folder) if step_of(path) < written]
    whole = [path for path in older if is_whole(path)]
    kept = whole[len(whole) - min(keep - 1, len(whole)) :]
    for path in older:
        if path not in kept:
            discard(path)
    remove_leftovers(folder, below=written)


def remove_leftovers(folder: Path, below: int | None = None) -> None:
    """Removes what killed runs left half-written or half-removed; only that of steps before `below` where it is set."""
    for path in folder.glob(".step-*"):
        if below is None or step_of(path) < below:
            shutil.rmtree(path)


def sync_folder(folder: Path) -> None:
    """The names in a folder reach the disk, as fsync of a file does not promise."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """A disk's refusal in words: which state is not saved, and what to do."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"step {step_of(folder)} could not be saved under {folder.parent}: {error}. Older states there are "
            "untouched. Free space or lower keep_states, then start again: the run goes on from the last state."
        ) from error
