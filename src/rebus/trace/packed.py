"""Which packs of which plans hold a sample, and what a pack holds."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rebus.errors import DataError
from rebus.packs.plan import PLAN_FILE, TO_THE_END
from rebus.shards.read import read_index
from rebus.trace.found import Artifact, Ways
from rebus.trace.judged import read_lines
from rebus.trace.places import Named, read_text


@dataclass(frozen=True)
class OpenPlan:
    """A plan read for what it says alone: neither its tokenizer nor its shards need to be there any more."""

    artifact: Artifact

    @cached_property
    def table(self) -> pa.Table:
        """Memory-mapped, one row a document, sorted by pack. Raises: DataError where it names no samples."""
        path = self.artifact.folder / PLAN_FILE
        try:
            with pa.memory_map(str(path)) as source:
                table = pa.ipc.open_file(source).read_all()
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(f"{path} cannot be read ({error}). Pack again: `rebus pack`.") from error
        if missing := {"pack", "uid", "shard", "row", "num_tokens"} - set(table.column_names):
            raise DataError(f"{path} lacks {', '.join(sorted(missing))}: it cannot say which samples it holds.")
        return table

    @cached_property
    def bounds(self) -> np.ndarray:
        """int64 [num_packs + 1], the rows of each pack."""
        return np.searchsorted(self.table["pack"].to_numpy(), np.arange(self.num_packs + 1))

    @property
    def num_packs(self) -> int:
        return int(self.artifact.manifest.facts["num_packs"])

    @property
    def blocks(self) -> np.ndarray | None:
        blocks = self.artifact.manifest.facts.get("blocks")
        return None if blocks is None else np.array(blocks, dtype=np.int64)

    def shard(self, number: int) -> Path:
        place = self.artifact.manifest.facts["shards"][number]
        return Path(place["folder"]) / place["name"]


def packs_of(ways: Ways, named: Named) -> list[dict[str, Any]]:
    """For each plan, the documents that are the sample or a part of it; a plan that refused it says why."""
    found = []
    for artifact in ways.of_kind("plan"):
        try:
            documents = _documents_of(OpenPlan(artifact), named.uid) if named.uid else []
            found.append({"plan": str(artifact.folder), "documents": documents, "refused": _refused(artifact, named)})
        except DataError as error:
            found.append({"plan": str(artifact.folder), "documents": [], "refused": [], "unknown": str(error)})
    return found


def _documents_of(plan: OpenPlan, uid: str) -> list[dict[str, Any]]:
    wanted = pa.scalar(bytes.fromhex(uid), plan.table["uid"].type)
    rows = np.flatnonzero(pc.equal(plan.table["uid"], wanted).to_numpy())
    return [_document(plan, int(row)) for row in rows]


def _document(plan: OpenPlan, row: int) -> dict[str, Any]:
    """first_position: in its pack, of the tokens of the documents before it."""
    found = {name: value[0] for name, value in plan.table.slice(row, 1).to_pydict().items()}
    start = int(plan.bounds[found["pack"]])
    before = plan.table["num_tokens"].slice(start, row - start).to_numpy()
    shard = plan.shard(found["shard"])
    document = {
        "pack": found["pack"],
        "document": row - start,
        "first_position": int(before.sum(dtype=np.int64)),
        "num_tokens": found["num_tokens"],
        "uid": found["uid"].hex(),
        "shard": str(shard),
        "row": found["row"],
    }
    first, end = found.get("first_part", 0), found.get("end_part", TO_THE_END)
    if (first, end) != (0, TO_THE_END):
        document["parts"] = f"{first} to {'the end' if end == TO_THE_END else end}"
    return document


def _refused(artifact: Artifact, named: Named) -> list[dict[str, Any]]:
    """Lines of the plan's quarantine about the sample."""
    keys = {(place.shard.name, place.key) for place in named.places}
    lines = read_lines(artifact.folder / "quarantine.jsonl")
    return [line for line in lines if (Path(str(line.get("shard"))).name, line.get("key")) in keys]


def pack_documents(plan: OpenPlan, pack: int) -> list[dict[str, Any]]:
    """All documents of a pack, with where each lies and what it says. Raises: DataError where there is no such pack."""
    if not 0 <= pack < plan.num_packs:
        raise DataError(f"{plan.artifact.folder} has packs 0 to {plan.num_packs - 1}, no pack {pack}.")
    rows = range(int(plan.bounds[pack]), int(plan.bounds[pack + 1]))
    return [_told(_document(plan, row)) for row in rows]


def _told(document: dict[str, Any]) -> dict[str, Any]:
    """With key and text, where the shard still holds that sample there."""
    shard = Path(document["shard"])
    try:
        rows = read_index(shard).slice(document["row"], 1).to_pylist()
    except DataError as error:
        return {**document, "unreadable": str(error)}
    if not rows or rows[0]["uid"] != document["uid"]:
        return {**document, "unreadable": f"{shard} was made anew since: another sample is there now"}
    return {**document, "key": rows[0]["key"], **read_text(shard, rows[0])}
