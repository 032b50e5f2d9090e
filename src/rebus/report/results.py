"""The numbers of a run, flat: what results.json holds."""

from collections.abc import Sequence
from typing import Any

import pyarrow.parquet as pq

from rebus.engine import list_shards
from rebus.report.gather import Artifact, Planted, Way, read_clock, read_json, read_lines, read_planted
from rebus.shards.read import read_index
from rebus.training.metrics import read_rows


def gather_results(way: Way) -> dict[str, Any]:
    """Every number that the artifacts of a way give; what nobody measured is None.

    Shares are 0..1, times seconds, memory 10**9 bytes as clock.jsonl has it.
    """
    results: dict[str, Any] = {}
    for shards in way.of_kind("shards"):
        planted = read_planted(shards)
        if planted is not None:
            results |= _planted_results(way, shards, planted)
    results |= _funnel_results(way)
    results |= _fill_results(way)
    results |= _training_results(way)
    results |= _clock_results(way)
    evaluation = headline_eval(way)
    if evaluation is not None:
        copied = read_json(evaluation.folder / "results.json")
        results |= {name: value for name, value in copied.items() if name not in results and _is_number(value)}
    return results


def headline_eval(way: Way) -> Artifact | None:
    """The evaluation of the checkpoint that stands last; of several, the last by name."""
    order = {checkpoint.fingerprint: rank for rank, checkpoint in enumerate(way.of_kind("checkpoint"))}
    ranked = [
        (max((order.get(fp, -1) for fp in evaluation.manifest.inputs.values()), default=-1), index, evaluation)
        for index, evaluation in enumerate(way.of_kind("eval"))
    ]
    return max(ranked, key=lambda row: row[:2])[2] if ranked else None


def checkpoint_of(way: Way, evaluation: Artifact | None) -> Artifact | None:
    """The checkpoint that an evaluation used; without evaluation the last one."""
    if evaluation is not None:
        found = way.inputs_of(evaluation, "checkpoint")
        if found:
            return found[-1]
    checkpoints = way.of_kind("checkpoint")
    return checkpoints[-1] if checkpoints else None


def _is_number(value: Any) -> bool:
    """A number, or an interval of two."""
    if isinstance(value, list):
        return len(value) == 2 and all(_is_number(item) for item in value)
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _planted_results(way: Way, shards: Artifact, planted: Planted) -> dict[str, Any]:
    """How much of what was planted is gone, and how much of the rest went with it."""
    found = {
        (row.get("shard", "").removesuffix(".tar"), row.get("key", ""))
        for folder in [shards, *way.standing_on("scores", shards)]
        for row in quarantine_of(folder)
    }
    results: dict[str, Any] = {
        "planted_swaps": len(planted.swapped),
        "swaps_removed": None,
        "clean_removed": None,
        "damaged_planted": len(planted.damaged),
        "damaged_found": len(planted.damaged.keys() & found),
    }
    selection = headline_selection(way, way.standing_on("selection", shards))
    if selection is not None:
        kept = kept_uids(selection)
        clean = clean_uids(shards, planted)
        results["swaps_removed"] = _share(len(planted.swapped - kept), len(planted.swapped))
        results["clean_removed"] = _share(len(clean - kept), len(clean))
    return results


def quarantine_of(artifact: Artifact) -> list[dict[str, Any]]:
    """Every quarantine line of a shards, scores or plan folder."""
    patterns = ("*.quarantine.jsonl", "quarantine/*.jsonl", "quarantine.jsonl")
    paths = sorted(path for pattern in patterns for path in artifact.folder.glob(pattern))
    return [row for path in paths for row in read_lines(path)]


def kept_uids(selection: Artifact) -> set[str]:
    table = pq.read_table(selection.folder / "selection.parquet", columns=["uid", "kept"])
    return set(table.filter(table["kept"])["uid"].to_pylist())


def clean_uids(shards: Artifact, planted: Planted) -> set[str]:
    """uids of the pairs that nobody swapped or damaged, as the shards' indexes list them."""
    clean = set()
    for tar in list_shards(shards.folder):
        index = read_index(tar).select(["key", "uid"]).to_pydict()
        pairs = zip(index["key"], index["uid"], strict=True)
        clean |= {uid for key, uid in pairs if not planted.spoils(tar.stem, key)}
    return clean - planted.swapped


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def headline_selection(way: Way, selections: Sequence[Artifact]) -> Artifact | None:
    """The selection that a plan or other shards were made of, else one that no filter network was trained on; of
    several the last."""

    def read_by(*kinds: str) -> set[str]:
        return {fp for kind in kinds for one in way.of_kind(kind) for fp in one.manifest.inputs.values()}

    packed, trusted = read_by("plan", "shards"), read_by("weights")
    ranked = sorted(selections, key=lambda one: (one.fingerprint in packed, one.fingerprint not in trusted))
    return ranked[-1] if ranked else None


def _funnel_results(way: Way) -> dict[str, Any]:
    selection = headline_selection(way, way.of_kind("selection"))
    if selection is None:
        return {}
    facts = selection.manifest.facts
    return {name: facts[name] for name in ("num_kept", "num_dropped") if name in facts}


def _fill_results(way: Way) -> dict[str, Any]:
    """The worst plan's fill, and each."""
    fills = {plan.name: float(plan.manifest.facts["fill"]) for plan in way.of_kind("plan")}
    each = {f"pack_fill_{name}": fill for name, fill in fills.items()} if len(fills) > 1 else {}
    return {"pack_fill": min(fills.values(), default=None), **each}


def _training_results(way: Way) -> dict[str, Any]:
    totals = [rows[-1].tokens_total for rows in map(metrics_of, way.of_kind("checkpoint")) if rows]
    return {"tokens_trained": sum(totals) if totals else None}


def metrics_of(checkpoint: Artifact) -> list:
    """The training steps of a checkpoint; none where it was imported."""
    return read_rows(checkpoint.folder / "metrics.jsonl")


def _clock_results(way: Way) -> dict[str, Any]:
    clock = read_clock(way.folder)
    return {
        "seconds_total": sum(command.seconds for command in clock) if clock else None,
        "peak_rss_gb": max((command.peak_rss_gb for command in clock), default=None),
    }


def evenly(items: Sequence, count: int) -> list:
    """`count` items from first to last at even distances: nobody picks the pretty ones."""
    if len(items) <= count:
        return list(items)
    return [items[round(i * (len(items) - 1) / (count - 1))] for i in range(count)]
