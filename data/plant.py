"""Plants known damage in a copy of a set, so that the demo can show what `rebus` finds of it.

    python data/plant.py --input data/emoji/train --out runs/demo/pool --swap 0.2 --damage 12 --seed 7

Swaps the text side of a known share of samples in one circle (none keeps its own) and damages some more, half of them
samples of the set, half new ones. out/planted.json, written last, says which; then index with `rebus shards`.
"""

import argparse
import io
import json
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rebus.engine import list_shards
from rebus.errors import DataError
from rebus.fingerprint import discard, fingerprint, write_atomically
from rebus.log import say
from rebus.pictures.decode import decode_image
from rebus.shards import damage, index
from rebus.shards.sources.tars import tars_fingerprint
from rebus.shards.write import write_shard

PLANTED = "planted.json"
IDENTITY = ("uid", "base")  # stay with the picture when texts are swapped

Members = dict[str, bytes]


@dataclass
class Entry:
    """One sample on its way: the shard it is in, its key and its members."""

    shard: str
    key: str
    members: Members


def without_bytes(members: Members) -> Members:
    return {**members, "webp": b""}


def truncated(members: Members) -> Members:
    """Half of a JPEG: its header tells the size, only decoding shows that rows are missing."""
    buffer = io.BytesIO()
    decode_image(members["webp"]).save(buffer, "JPEG", quality=90)
    rest = {name: data for name, data in members.items() if name != "webp"}
    return {"jpg": buffer.getvalue()[: len(buffer.getvalue()) // 2], **rest}


def text_for_image(members: Members) -> Members:
    return {**members, "webp": b"<html><body>404 Not Found</body></html>"}


def bad_json(members: Members) -> Members:
    return {**members, "json": members["json"][:-1]}


def without_caption(members: Members) -> Members:
    return {name: data for name, data in members.items() if name != "txt"}


def bad_utf8(members: Members) -> Members:
    return {**members, "txt": b"caf\xe9: " + members["txt"]}


def without_image(members: Members) -> Members:
    return {name: data for name, data in members.items() if name != "webp"}


def blank_caption(members: Members) -> Members:
    return {**members, "txt": b" \n"}


def caption_with_placeholder(members: Members) -> Members:
    return {**members, "txt": damage.PLACEHOLDER.encode() + b" " + members["txt"]}


def bomb(members: Members) -> Members:
    """A PNG of a few hundred bytes whose header claims 30,000 x 30,000 pixels."""
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"")))
    data = b"\x89PNG\r\n\x1a\n"
    for name, body in (*chunks, (b"IEND", b"")):
        data += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    rest = {name: content for name, content in members.items() if name != "webp"}
    return {"png": data, **rest}


def endless_caption(members: Members) -> Members:
    return {**members, "txt": members["txt"] + b", page" * 6_000}


def unharmed(members: Members) -> Members:
    return dict(members)


KINDS: list[tuple[str, Callable[[Members], Members]]] = [
    (damage.ZERO_BYTE_IMAGE, without_bytes),
    (damage.UNDECODABLE_IMAGE, truncated),
    (damage.UNREADABLE_IMAGE, text_for_image),
    (damage.BAD_JSON, bad_json),
    (damage.MISSING_CAPTION, without_caption),
    (damage.BAD_UTF8, bad_utf8),
    (damage.MISSING_IMAGE, without_image),
    (damage.UNDECODABLE_IMAGE, truncated),
    (damage.EMPTY_CAPTION, blank_caption),
    (damage.PLACEHOLDER_IN_CAPTION, caption_with_placeholder),
    (damage.BOMB, bomb),
    (index.DUPLICATE_KEY, unharmed),
    (damage.OVERSIZED_CAPTION, endless_caption),
]
"""Reason that must be found, and how it is made; taken in turn, so the first half lands on samples of the set."""


def plant(source: Path, out: Path, swap: float, num_damaged: int, seed: int) -> dict[str, Any]:
    """Writes the pool; returns what was planted. At once where it is there already."""
    wanted = fingerprint({"input": tars_fingerprint(source), "swap": swap, "damage": num_damaged, "seed": seed})
    found = _read_planted(out)
    if found is not None and found["fingerprint"] == wanted:
        say(f"{out} is up to date")
        return found
    entries = [
        Entry(tar.name, group.key, group.members) for tar in list_shards(source) for group in index.read_groups(tar)
    ]
    dice = random.Random(seed)
    planted = {"fingerprint": wanted, "seed": seed, "swap": swap, "num_samples": len(entries)}
    chosen = dice.sample(range(len(entries)), num_damaged)
    planted["swapped"] = _swap_texts(entries, swap, set(chosen), dice)
    planted["damaged"] = _damage(entries, chosen)
    _write(entries, planted, out)
    return planted


def _read_planted(out: Path) -> dict[str, Any] | None:
    """What an earlier run planted in `out`; None where there is nothing. Raises: DataError for a foreign folder."""
    if not out.exists() or not any(out.iterdir()):
        return None
    if not (out / PLANTED).is_file():
        raise DataError(f"{out} holds files that data/plant.py did not make. Choose another --out.")
    return json.loads((out / PLANTED).read_text())


def _swap_texts(entries: list[Entry], share: float, damaged: set[int], dice: random.Random) -> list[str]:
    """Hands texts on in one circle through a share of the undamaged samples. Returns their uids, sorted."""
    clean = [number for number in range(len(entries)) if number not in damaged]
    circle = dice.sample(clean, round(share * len(entries)))
    texts = [entries[number].members for number in circle]
    for number, other in zip(circle, texts[1:] + texts[:1], strict=True):
        entries[number].members = _with_text_of(entries[number].members, other)
    return sorted(json.loads(entries[number].members["json"])["uid"] for number in circle)


def _with_text_of(members: Members, other: Members) -> Members:
    own = json.loads(members["json"])
    metadata = {**json.loads(other["json"]), **{name: own[name] for name in IDENTITY if name in own}}
    return {**members, "txt": other["txt"], "json": json.dumps(metadata, ensure_ascii=False).encode()}


def _damage(entries: list[Entry], chosen: list[int]) -> list[dict[str, Any]]:
    """Damages half of the chosen samples; the others stay whole and get a damaged neighbour instead."""
    planted, neighbours = [], []
    for turn, number in enumerate(chosen):
        reason, harm = KINDS[turn % len(KINDS)]
        entry, is_new = entries[number], turn >= len(chosen) // 2 or harm is unharmed
        key = entry.key if reason == index.DUPLICATE_KEY or not is_new else f"planted-{turn:04d}"
        harmed = Entry(entry.shard, key, harm(entry.members))
        if is_new:
            neighbours.append((number, harmed))
        else:
            entries[number] = harmed
        planted.append({"shard": harmed.shard, "key": key, "reason": reason, "new": is_new})
    for number, harmed in sorted(neighbours, key=lambda pair: -pair[0]):
        entries.insert(number + 1, harmed)
    return planted


def _write(entries: list[Entry], planted: dict[str, Any], out: Path) -> None:
    """Into a folder beside `out`, then renamed: whole or not at all."""
    building = out.with_name(f".{out.name}.building")
    discard(building)
    for shard in dict.fromkeys(entry.shard for entry in entries):
        write_shard(building / shard, ((entry.key, entry.members) for entry in entries if entry.shard == shard))
    write_atomically(building / PLANTED, json.dumps(planted, indent=1) + "\n")
    discard(out)
    building.rename(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True, help="folder of WebDataset tars")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--swap", type=float, default=0.2, help="share of samples that get another's text")
    parser.add_argument("--damage", type=int, default=12, help="number of damaged samples")
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    planted = plant(arguments.input, arguments.out, arguments.swap, arguments.damage, arguments.seed)
    say(f"{arguments.out}: {len(planted['swapped'])} texts swapped, {len(planted['damaged'])} samples damaged")


if __name__ == "__main__":
    main()
