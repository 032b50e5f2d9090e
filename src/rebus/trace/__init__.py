"""`rebus trace`: a sample through everything that was made of it, and back from a step or a pack to its samples."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rebus.errors import ConfigError
from rebus.trace.found import Artifact, Ways, find_ways
from rebus.trace.judged import scores_of, selections_of
from rebus.trace.packed import OpenPlan, pack_documents, packs_of
from rebus.trace.places import describe_place, find_named
from rebus.trace.steps import describe_step, runs_of


def run(names: Sequence[str], *, step: int | None = None, pack: int | None = None, as_json: bool = False) -> None:
    """names: a sample (uid, the beginning of one, or key) and folders; with `step` or `pack` folders alone.

    Raises: ConfigError, DataError.
    """
    from rebus.trace.tell import tell_pack, tell_sample, tell_step

    if step is not None and pack is not None:
        raise ConfigError("give --step or --pack, not both.")
    asks_sample = step is None and pack is None
    if len(names) < 1 + asks_sample:
        raise ConfigError("give a sample and a folder, such as `rebus trace UID runs/demo`; or --step N with a run.")
    ways = find_ways([Path(name) for name in names[asks_sample:]])
    if asks_sample:
        found, tell = trace_sample(ways, names[0]), tell_sample
    elif step is not None:
        found, tell = describe_step(ways, _only(ways, names, "checkpoint", "--step"), step), tell_step
    else:
        found, tell = trace_pack(_only(ways, names, "plan", "--pack"), pack or 0), tell_pack
    if as_json:
        sys.stdout.write(json.dumps(found, indent=1, ensure_ascii=False, default=str) + "\n")
    else:
        tell(found)


def trace_sample(ways: Ways, name: str) -> dict[str, Any]:
    """All that the artifacts say of one sample, in plain values."""
    named = find_named(ways, name)
    packed = packs_of(ways, named)
    return {
        "uid": named.uid,
        "places": [describe_place(place) for place in named.places],
        "damaged": [{"path": str(shard), **vars(damage)} for shard, damage in named.damages],
        "unread": list(named.unread),
        "scores": scores_of(ways, named),
        "selections": selections_of(ways, named),
        "plans": packed,
        "runs": runs_of(ways, packed, {place.key for place in named.places}),
    }


def trace_pack(plan: Artifact, pack: int) -> dict[str, Any]:
    return {"plan": str(plan.folder), "pack": pack, "documents": pack_documents(OpenPlan(plan), pack)}


def _only(ways: Ways, names: Sequence[str], kind: str, option: str) -> Artifact:
    """The one artifact of a kind in the folders given; what recipes lead to does not count."""
    given = [Path(name).resolve() for name in names]
    found = [a for a in ways.of_kind(kind) if any(a.folder.resolve().is_relative_to(one) for one in given)]
    if len(found) != 1:
        known = ", ".join(str(artifact.folder) for artifact in found) or "none"
        word = {"checkpoint": "run", "plan": "plan"}[kind]
        raise ConfigError(f"{option} asks one {word}; in {', '.join(names)} there is: {known}. Give its own folder.")
    return found[0]
