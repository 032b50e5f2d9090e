"""`rebus show`: look at a sample, a pack or a run. What a folder is, its manifest says; its name never matters."""

import json
from pathlib import Path
from typing import Any

import yaml
from rich.text import Text

from rebus import records
from rebus.batches.feed import open_feed
from rebus.errors import ConfigError, DataError, nearest
from rebus.fingerprint import MANIFEST, write_atomically
from rebus.log import output, say, show_table
from rebus.shards.read import read_index, read_metadata, read_quarantine, read_sample
from rebus.show.page import render_page
from rebus.show.terminal import print_pack, thumbnail
from rebus.show.view import view_pack

NUM_LISTED = 20


def run(path: Path, *, sample: str | None = None, pack: int | None = None, html: Path | None = None) -> None:
    """Prints what there is at `path`: a shard (.tar), or the folder of any artifact.

    sample: a key or a number, of a shard. pack: a pack's number, of a plan. html: where to write the pack's page.
    Raises: DataError where there is nothing to show, ConfigError for an option that does not go with what it is.
    """
    kind = "shard" if path.is_file() else _kind_of(path)
    _refuse_option("--sample", sample, kind, "shard")
    _refuse_option("--pack", pack, kind, "plan")
    _refuse_option("--html", html, kind, "plan")
    if kind == "shard":
        _show_index(path) if sample is None else _show_sample(path, sample)
    elif kind == "plan":
        _show_pack(path, pack or 0, html)
    else:
        _show_artifact(path)


def _kind_of(folder: Path) -> str:
    manifest = folder / MANIFEST
    if not manifest.is_file():
        if (folder / "metrics.jsonl").is_file():
            return "unfinished run"
        raise DataError(
            f"{folder} is no artifact of Rebus: it has no {MANIFEST}. Show a shard (.tar) or a stage's `out`."
        )
    return json.loads(manifest.read_text())["kind"]


def _refuse_option(name: str, value: object, kind: str, wanted: str) -> None:
    if value is not None and kind != wanted:
        raise ConfigError(f"{name} goes with a {wanted}, but this is a {kind}.")


def _show_index(tar: Path) -> None:
    index = read_index(tar)
    columns = ["key", "kind", "width", "height", "num_images", "text_chars"]
    rows = [
        [number, *row.values()] for number, row in enumerate(index.select(columns).slice(0, NUM_LISTED).to_pylist())
    ]
    show_table(f"{tar}: {index.num_rows:,} samples", ["sample", *columns], [list(map(str, row)) for row in rows])
    num_damaged = len(read_quarantine(tar))
    left = max(0, index.num_rows - NUM_LISTED)
    say(f"{left:,} more; {num_damaged:,} damaged. `rebus show {tar} --sample N` shows one.")


def _show_sample(tar: Path, name: str) -> None:
    place = _find_sample(tar, name)
    sample = read_sample(tar, place)
    output.print(Text(f"{sample.key}  uid {sample.uid}  byte {place['offset']:,} of {tar}", "bold cyan"))
    for part in sample.parts:
        for image in records.images_of(part):
            output.print(thumbnail(image.data or b"", columns=48))
            output.print(Text(f"{image.width} x {image.height} pixels, {len(image.data or b''):,} bytes", "grey62"))
        if isinstance(part, records.Text):
            role = f"{part.role}: " if part.role else ""
            output.print(Text(role, "bold") + Text(part.text))
    metadata = read_metadata(tar, place)
    if metadata:
        output.print_json(json.dumps(metadata, ensure_ascii=False))


def _find_sample(tar: Path, name: str) -> dict[str, Any]:
    """By key; where no key is so called, by number."""
    index = read_index(tar)
    keys = index["key"].to_pylist()
    if name in keys:
        return index.slice(keys.index(name), 1).to_pylist()[0]
    if name.isdecimal() and int(name) < len(keys):
        return index.slice(int(name), 1).to_pylist()[0]
    damage = [one for one in read_quarantine(tar) if one.key == name]
    if damage:
        raise DataError(f"{tar}: sample '{name}' is damaged ({damage[0].reason}: {damage[0].detail}).")
    raise DataError(f"{tar} has samples 0 to {len(keys) - 1}, and none is called '{name}'{nearest(name, keys)}.")


def _show_pack(plan: Path, pack: int, html: Path | None) -> None:
    view = view_pack(open_feed(plan), pack)
    if html is None:
        print_pack(view)
        return
    write_atomically(html, render_page(view, f"{plan}, pack {pack}"))
    say(f"wrote {html}")


def _show_artifact(folder: Path) -> None:
    """The recipe that made it, what its manifest says, and the newest row of its metrics."""
    recipe = folder / "recipe.yaml"
    if recipe.is_file():
        show_table(f"{recipe}", ["key", "value"], _flat(yaml.safe_load(recipe.read_text())))
    if (folder / MANIFEST).is_file():
        body = json.loads((folder / MANIFEST).read_text())
        facts = {key: body[key] for key in ("kind", "fingerprint", "rebus", "created", "inputs")} | body["facts"]
        show_table(f"{folder}", ["fact", "value"], _flat(facts))
    else:
        say(f"{folder} is not finished: run the same command again, it goes on.")
    _show_rows(folder)


def _show_rows(folder: Path) -> None:
    metrics, funnel = folder / "metrics.jsonl", folder / "funnel.json"
    lines = metrics.read_text().splitlines() if metrics.is_file() else []
    if lines:
        show_table("last step", ["metric", "value"], _flat(json.loads(lines[-1])))
    if funnel.is_file():
        rows = json.loads(funnel.read_text())
        show_table("funnel", ["rule", "dropped", "left"], [(row["rule"], row["dropped"], row["left"]) for row in rows])


def _flat(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested mappings as dotted rows; long lists by their length."""
    rows = []
    for key, value in tree.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{key}.")
        else:
            long = isinstance(value, list) and len(value) > 8
            rows.append((f"{prefix}{key}", f"{len(value)} entries" if long else str(value)))
    return rows
