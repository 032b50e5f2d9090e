"""Training states: what a run resumes from. One folder a step, whole or not there."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from rebus.checkpoints.save import write_tensors
from rebus.fingerprint import Manifest, discard, is_current, read_manifest, write_manifest


@dataclass(frozen=True)
class State:
    """step: optimizer steps done. weights: what trains, by name. optimizer: its tensors by name. meta: JSON values
    (cursor, random states as lists, metrics)."""

    step: int
    weights: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    meta: dict[str, Any]


def save_state(
    folder: Path,
    *,
    step: int,
    weights: dict[str, torch.Tensor],
    optimizer: dict[str, torch.Tensor],
    meta: dict[str, Any],
) -> Path:
    """Writes `folder`/step-NNNNNN: built under another name, its manifest last, then renamed. Returns its path."""
    final = folder / f"step-{step:06d}"
    building = folder / f".step-{step:06d}.building"
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    write_tensors(building / "weights.safetensors", weights)
    write_tensors(building / "optimizer.safetensors", optimizer)
    (building / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")
    write_manifest(building, Manifest("state", {"step": step}))
    discard(final)
    os.replace(building, final)
    return final


def list_states(folder: Path) -> list[Path]:
    """Whole states in step order; what a killed run left half-written is not among them."""
    found = sorted(folder.glob("step-*"), key=_step)
    return [path for path in found if is_current(path, Manifest("state", {"step": _step(path)}))]


def latest_state(folder: Path) -> State | None:
    """The last whole state under `folder`, or None where there is none."""
    states = list_states(folder)
    return load_state(states[-1]) if states else None


def load_state(path: Path) -> State:
    """Reads one state folder. Raises: DataError where it is not whole."""
    manifest = read_manifest(path, "state")
    return State(
        step=manifest.made_by["step"],
        weights=safetensors.torch.load_file(path / "weights.safetensors"),
        optimizer=safetensors.torch.load_file(path / "optimizer.safetensors"),
        meta=json.loads((path / "meta.json").read_text()),
    )


def prune_states(folder: Path, keep: int) -> None:
    """Removes all but the last `keep` states, and what killed runs left half-written."""
    for path in [*list_states(folder)[: -keep or None], *folder.glob(".step-*")]:
        shutil.rmtree(path)


def _step(path: Path) -> int:
    digits = path.name.removeprefix("step-")
    return int(digits) if digits.isdecimal() else -1
