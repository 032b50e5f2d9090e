"""Writes a whole run as its stages would leave it, with numbers that a hand can check. No stage but shards runs."""

import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from rebus.fingerprint import Manifest, write_manifest
from rebus.records import Damage
from rebus.shards.index import write_index
from rebus.shards.read import read_index
from rebus.shards.write import write_shard
from rebus.training.metrics import StepRow, append_row

CAPACITY = 100


@dataclass(frozen=True)
class Pair:
    """A pair of the pool and what is wrong with it: "", swapped, "no caption" (the index sees it) or undecodable."""

    caption: str
    picture: bytes
    z: float
    entropy: float = 4.0
    fault: str = ""


def draw_picture(number: int, size: int = 48) -> bytes:
    """A PNG with a shape whose place and colour follow from the number."""
    image = PIL.Image.new("RGB", (size, size), "white")
    pen = PIL.ImageDraw.Draw(image)
    x, y = 4 + 5 * (number % 4), 4 + 3 * (number % 6)
    colour = ((37 * number) % 256, (91 * number) % 256, (151 * number) % 256)
    (pen.ellipse if number % 2 else pen.rectangle)((x, y, x + 20, y + 20), fill=colour)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def small_pool() -> list[Pair]:
    """40 pairs: 4 swapped, 2 damaged, 34 clean. z of the clean ones is 0.0, 0.1, ... 3.9 by number."""
    pairs = []
    for i in range(40):
        fault = {2: "swapped", 12: "swapped", 22: "swapped", 32: "swapped", 5: "no caption", 25: "undecodable"}.get(
            i, ""
        )
        z = {2: -1.0, 12: -0.5, 22: -0.2, 32: 5.0}.get(i, i / 10)
        picture = draw_picture(i)
        pairs.append(Pair(f"shape <{i}>", picture[:90] if fault == "undecodable" else picture, z, 3 + i % 5, fault))
    return pairs


def write_way(folder: Path, pool: list[Pair], heldout: list[tuple[str, bytes]], *, keep_min: float = 0.35) -> Path:
    """Artifacts of every kind in `folder` under odd names; the held-out shards stand beside it, as data does."""
    folder.mkdir(parents=True)
    shards = _write_pool(folder / "b_pool", pool)
    scores = _write_scores(folder / "a_tables", folder / "b_pool", pool, shards)
    selection = _write_selection(
        folder / "z_kept", folder / "b_pool", pool, {"shards": shards, "scores": scores}, keep_min
    )
    plans = [
        _write_plan(
            folder / "plan_one", {"shards/0": shards, "selection": selection}, [[50, 45], [60, 39], [30, 30, 31]]
        ),
        _write_plan(folder / "plan_two", {"shards/0": shards, "selection": selection}, [[50, 50], [96]]),
    ]
    first = _write_checkpoint(folder / "y_first", {"plan": plans[0]}, num_steps=60, lr=1e-3)
    last = _write_checkpoint(folder / "x_last", {"plan": plans[1], "init": first}, num_steps=40, lr=2e-4)
    asked = _write_heldout(folder.parent / "heldout", heldout)
    _write_eval(
        folder / "c_judged", folder.parent / "heldout", {"model": last, "shards": asked}, [c for c, _ in heldout]
    )
    _write_clock(folder)
    return folder


def _write_pool(folder: Path, pool: list[Pair]) -> str:
    half = (len(pool) + 1) // 2
    for number in range(2):
        tar = folder / f"{number:05d}.tar"
        write_shard(tar, [_members(i, pool[i]) for i in range(number * half, min(len(pool), (number + 1) * half))])
        write_index(tar)
    swapped = [f"{i:032x}" for i, pair in enumerate(pool) if pair.fault == "swapped"]
    damaged = [
        {"shard": f"{i // half:05d}.tar", "key": f"{i:09d}", "reason": pair.fault}
        for i, pair in enumerate(pool)
        if pair.fault in ("no caption", "undecodable")
    ]
    (folder / "planted.json").write_text(json.dumps({"swapped": swapped, "damaged": damaged}))
    return _finish(folder, Manifest("shards", {"source": "tars"}, {}, {"num_samples": len(pool), "num_shards": 2}))


def _members(number: int, pair: Pair) -> tuple[str, dict[str, bytes]]:
    metadata = json.dumps({"uid": f"{number:032x}"}).encode()
    members = {"png": pair.picture, "txt": pair.caption.encode(), "json": metadata}
    if pair.fault == "no caption":
        del members["txt"]
    return f"{number:09d}", members


def _finish(folder: Path, manifest: Manifest, recipe: dict | None = None) -> str:
    if recipe is not None:
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    write_manifest(folder, manifest)
    return manifest.fingerprint


def _write_scores(folder: Path, shards: Path, pool: list[Pair], source: str) -> str:
    for tar in sorted(shards.glob("*.tar")):
        index = read_index(tar).to_pylist()
        good = [row for row in index if pool[int(row["key"])].fault != "undecodable"]
        bad = [row for row in index if pool[int(row["key"])].fault == "undecodable"]
        for scorer, column in (("pair_similarity", "z"), ("image_stats", "entropy")):
            values = [getattr(pool[int(row["key"])], column) for row in good]
            table = {
                "uid": [r["uid"] for r in good],
                "key": [r["key"] for r in good],
                column: pa.array(values, pa.float32()),
            }
            (folder / scorer).mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.table(table), folder / scorer / f"{tar.stem}.parquet")
        (folder / "quarantine").mkdir(exist_ok=True)
        damages = [Damage(tar.name, row["key"], row["offset"], "undecodable image") for row in bad]
        lines = "".join(json.dumps(asdict(damage)) + "\n" for damage in damages)
        (folder / "quarantine" / f"{tar.stem}.jsonl").write_text(lines)
    recipe = {"shards": str(shards), "scorers": {"pair_similarity": {}, "image_stats": {}}}
    return _finish(folder, Manifest("scores", {"scorers": recipe["scorers"]}, {"shards": source}), recipe)


def _write_selection(folder: Path, shards: Path, pool: list[Pair], inputs: dict[str, str], keep_min: float) -> str:
    rows = []
    for tar in sorted(shards.glob("*.tar")):
        index = read_index(tar).to_pylist()
        seen = {row["key"] for row in index}
        rows += [(tar.name, number, row["key"], row["uid"]) for number, row in enumerate(index)]
        lines = tar.with_suffix(".quarantine.jsonl").read_text().splitlines()
        rows += [(tar.name, -1, json.loads(line)["key"], "") for line in lines if json.loads(line)["key"] not in seen]
    dropped = [_dropped_by(pool[int(key)], keep_min) for _, _, key, _ in rows]
    names = ["shard", "row", "key", "uid"]
    columns = {name: [row[i] for row in rows] for i, name in enumerate(names)}
    folder.mkdir()
    table = pa.table({**columns, "kept": [by == "" for by in dropped], "dropped_by": dropped})
    pq.write_table(table, folder / "selection.parquet")
    funnel, left = [{"rule": "all", "dropped": 0, "left": len(rows)}], len(rows)
    for rule in ("damaged", "match"):
        left -= dropped.count(rule)
        funnel.append({"rule": rule, "dropped": dropped.count(rule), "left": left})
    (folder / "funnel.json").write_text(json.dumps(funnel))
    rules = [{"name": "match", "column": "pair_similarity.z", "min": keep_min}]
    facts = {"num_kept": left, "num_dropped": len(rows) - left}
    return _finish(folder, Manifest("selection", {"rules": rules}, inputs, facts), {"rules": rules})


def _dropped_by(pair: Pair, keep_min: float) -> str:
    if pair.fault in ("no caption", "undecodable"):
        return "damaged"
    return "match" if pair.z < keep_min else ""


def _write_plan(folder: Path, inputs: dict[str, str], packs: list[list[int]]) -> str:
    folder.mkdir()
    rows = [(pack, tokens) for pack, lengths in enumerate(packs) for tokens in lengths]
    columns = {
        "pack": pa.array([pack for pack, _ in rows], pa.int32()),
        "num_tokens": pa.array([tokens for _, tokens in rows], pa.int32()),
    }
    table = pa.table(columns)
    with pa.OSFile(str(folder / "plan.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    num_tokens = sum(tokens for _, tokens in rows)
    facts = {"capacity": CAPACITY, "num_packs": len(packs), "num_documents": len(rows), "num_tokens": num_tokens}
    facts["fill"] = num_tokens / (CAPACITY * len(packs))
    recipe = {"capacity": CAPACITY, "seed": len(rows)}
    return _finish(folder, Manifest("plan", recipe, inputs, facts), recipe)


def _write_checkpoint(folder: Path, inputs: dict[str, str], *, num_steps: int, lr: float) -> str:
    folder.mkdir()
    noise = np.random.default_rng(num_steps).normal(0, 0.15, num_steps)
    for step in range(num_steps):
        loss = 1.5 + 3 * float(np.exp(-step / 15)) + float(noise[step])
        rate = lr * min(1, (step + 1) / 10) * (1 - step / num_steps)
        append_row(
            folder / "metrics.jsonl",
            StepRow(
                *(step, step / num_steps, loss, 1.0, rate, 200, 50, 40, 10, 10, 200 * (step + 1), 0.5),
                phases={"wait": 0.02, "transfer": 0.01, "forward": 0.15, "backward": 0.3, "optimizer": 0.02},
                mfu=0.35 + float(noise[step]) / 20,
                memory_gb=3.5,
                grad_norms={"connector": 0.4 + loss / 3, "language": loss / 5},
                is_skipped=step == 17,
                heldout=loss + 0.2 if step % 10 == 9 else None,
            ),
        )
    recipe = {"seed": 0, "steps": num_steps}
    return _finish(folder, Manifest("checkpoint", recipe, inputs), recipe)


def _write_heldout(folder: Path, heldout: list[tuple[str, bytes]]) -> str:
    pairs = [_members(1000 + i, Pair(caption, picture, 0)) for i, (caption, picture) in enumerate(heldout)]
    write_shard(folder / "00000.tar", pairs)
    write_index(folder / "00000.tar")
    return _finish(folder, Manifest("shards", {"source": "heldout"}, {}, {"num_samples": len(heldout)}))


def _write_eval(folder: Path, shards: Path, inputs: dict[str, str], labels: list[str]) -> str:
    folder.mkdir()
    lines = []
    for i, label in enumerate(labels):
        candidates = [labels[(i + 3 * k) % len(labels)] for k in range(4)]
        chosen = candidates[0] if i % 3 else candidates[1]
        identity = {"uid": f"{1000 + i:032x}", "key": f"{1000 + i:09d}", "label": label}
        draw = {
            "candidates": candidates[i % 4 :] + candidates[: i % 4],
            "log_likelihoods": [-1.0] * 4,
            "scores": [0.0] * 4,
        }
        for control in ("right", "wrong", "none"):
            row = {
                "task": "choice",
                **identity,
                "control": control,
                "picture": "",
                "draws": [{**draw, "chosen": chosen}],
            }
            lines.append(json.dumps(row))
        if i % 2:
            naming = {"task": "naming", **identity, "answer": chosen, "exact": chosen == label, "overlap": 0.5}
            lines.append(json.dumps(naming))
    (folder / "answers.jsonl").write_text("\n".join(lines) + "\n")
    results = {"num_eval": len(labels)}
    for name, share in (("right", 0.75), ("wrong", 0.25), ("no", 0.2)):
        results[f"choice4_{name}_image"] = share
        results[f"choice4_{name}_image_ci95"] = [share - 0.1, share + 0.1]
    (folder / "results.json").write_text(json.dumps(results))
    recipe = {"shards": str(shards), "prompt": {"question": "What is this?"}}
    return _finish(folder, Manifest("eval", {"choice": 4}, inputs), recipe)


def _write_clock(folder: Path) -> None:
    rows = [("score a.yaml", 12.5, 1.25, 20.0), (f"train b.yaml out={folder}/y_first", 60.0, 2.5, 110.0)]
    rows += [(f"train b.yaml out={folder}/x_last", 30.5, 2.25, 55.0), (f"report {folder}", 9.0, 9.0, 9.0)]
    names = ("name", "seconds", "peak_rss_gb", "cpu_seconds")
    lines = [json.dumps(dict(zip(names, row, strict=True))) for row in rows]
    (folder / "clock.jsonl").write_text("\n".join(lines) + "\n")
