"""A shard in the terminal: what it holds, what is damaged, and one sample in full."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.text import Text

from rebus import records
from rebus.doctor.examine import pointer
from rebus.errors import DataError, nearest
from rebus.log import output, printable, say, show_table
from rebus.records import Damage
from rebus.shards.index import DUPLICATE_KEY, index_path, index_tar
from rebus.shards.link import read_link
from rebus.shards.read import read_index, read_metadata, read_quarantine, read_sample, undecodable
from rebus.show.damaged import print_damage
from rebus.show.terminal import shown, thumbnail

NUM_LISTED = 20
COLUMNS = ("key", "kind", "width", "height", "num_images", "text_chars", "notes")


@dataclass(frozen=True)
class Listing:
    """index: of the usable samples (shards.index.SCHEMA). damages: of all others."""

    shard: Path
    index: pa.Table
    damages: tuple[Damage, ...]


def open_listing(shard: Path) -> Listing:
    """From the index beside the shard; a tar that was never indexed is read through."""
    if index_path(shard).is_file() or read_link(shard).layout == "rows":
        return Listing(shard, read_index(shard), tuple(read_quarantine(shard)))
    index, damages = index_tar(shard)
    return Listing(shard, index, tuple(damages))


def print_shard(shard: Path) -> None:
    """The first samples and the first of what is damaged, with the command that shows each."""
    listing = open_listing(shard)
    rows = listing.index.select(COLUMNS).slice(0, NUM_LISTED).to_pylist()
    cells = [[str(number), *(printable(str(value)) for value in row.values())] for number, row in enumerate(rows)]
    show_table(f"{shard}: {listing.index.num_rows:,} samples", ["sample", *COLUMNS], cells)
    for damage in listing.damages[:NUM_LISTED]:
        what = printable(f"{damage.reason}: {damage.detail}" if damage.detail else damage.reason)
        output.print(f"{pointer_to(listing, damage)}  # {what}", markup=False, highlight=False, soft_wrap=True)
    left = max(0, listing.index.num_rows - NUM_LISTED)
    more = max(0, len(listing.damages) - NUM_LISTED)
    say(f"{left:,} more samples; {len(listing.damages):,} damaged, {more:,} more. `rebus show {shard} --sample N`")


def pointer_to(listing: Listing, damage: Damage) -> str:
    """The command that shows a damaged sample."""
    is_doubled = damage.reason == DUPLICATE_KEY or sum(one.key == damage.key for one in listing.damages) > 1
    key = "" if is_doubled or not damage.key.isprintable() else damage.key
    return pointer(listing.shard, key, damage.offset)


def print_sample(shard: Path, name: str) -> None:
    """A sample by its key; by its number where no key is so called. A damaged one as it lies in the shard.

    Raises: DataError where there is none.
    """
    listing = open_listing(shard)
    keys = listing.index["key"].to_pylist()
    damages = [one for one in listing.damages if one.key == name]
    if name in keys:
        _print_usable(shard, listing.index.slice(keys.index(name), 1).to_pylist()[0])
    elif not damages and name.isdecimal() and int(name) < len(keys):
        _print_usable(shard, listing.index.slice(int(name), 1).to_pylist()[0])
    for damage in damages:
        print_damage(shard, damage)
    if name not in keys and not damages and not (name.isdecimal() and int(name) < len(keys)):
        hint = nearest(name, [*keys, *(one.key for one in listing.damages)])
        raise DataError(f"{shard} has samples 0 to {len(keys) - 1}, and none is called '{name}'{hint}.")


def _print_usable(shard: Path, place: dict[str, Any]) -> None:
    sample = read_sample(shard, place)
    head = f"{sample.key}  uid {sample.uid}  byte {place['offset']:,} of {shard}"
    output.print(Text(printable(head), "bold cyan"), soft_wrap=True)
    hidden = undecodable(shard, place["offset"], sample)
    if hidden is not None:
        output.print(Text(f"damaged: {hidden.reason}: {printable(hidden.detail)}", "bold red"))
    if place["notes"]:
        output.print(Text(f"odd, and used: {place['notes']}", "yellow"))
    for part in sample.parts:
        for image in records.images_of(part):
            output.print(thumbnail(image.data or b"", columns=48))
            output.print(Text(f"{image.width} x {image.height} pixels, {len(image.data or b''):,} bytes", "grey62"))
        if isinstance(part, records.Text):
            role = f"{part.role}: " if part.role else ""
            output.print(Text(role, "bold") + Text(shown(part.text)))
    metadata = read_metadata(shard, place)
    if metadata:
        output.print_json(json.dumps(metadata, ensure_ascii=True))
