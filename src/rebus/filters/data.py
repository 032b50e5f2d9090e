"""Trusted pairs: which samples they are, what texts they have, and their pictures when they are asked for."""

import concurrent.futures
import string
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rebus.engine import list_shards
from rebus.errors import DataError
from rebus.filters.config import CAPTION, FilterRecipe, PairsConfig
from rebus.fingerprint import read_manifest
from rebus.log import say, track
from rebus.pictures.decode import decode_image
from rebus.records import Sample, Text
from rebus.selection.read import kept_rows
from rebus.shards.link import Link, read_link
from rebus.shards.read import iterate_texts, open_index, read_metadata, read_sample
from rebus.towers.dual_pictures import PictureRule

NUM_THREADS = 4  # that decode; Pillow lets other threads run


@dataclass(frozen=True)
class Pair:
    """One sample: where it lies, and what may be said of it. place: as shards.read.read_sample wants it."""

    shard: Path
    link: Link
    place: dict[str, Any]
    texts: tuple[str, ...]

    @property
    def key(self) -> str:
        return f"{self.shard.name}/{self.place['key']}"

    def image_bytes(self) -> bytes:
        """The first picture as it lies in the shard."""
        return read_sample(self.shard, self.place, self.link).images[0].data or b""

    def picture(self) -> Any:
        """The first picture, RGB. Raises: ValueError where it cannot be decoded."""
        return decode_image(self.image_bytes())


def read_pairs(config: PairsConfig, recipe: FilterRecipe) -> list[Pair]:
    """The pairs with a text and a picture that decodes; others are counted, and too many are an error.

    Raises: DataError where more than max_bad_share fail, or none is left.
    """
    found = [pair for shard, rows in _wanted(config) for pair in _read_shard(shard, rows, recipe.texts)]
    whole = [pair for pair in found if pair is not None and pair.texts]
    with concurrent.futures.ThreadPoolExecutor(NUM_THREADS) as pool:
        checked = track(pool.map(_decodes, whole), f"reading {config.shards.name}", len(whole))
        good = [pair for pair, is_good in zip(whole, checked, strict=True) if is_good]
    num_bad = len(found) - len(good)
    if not good or num_bad > recipe.max_bad_share * len(found):
        raise DataError(
            f"{num_bad:,} of {len(found):,} samples of {config.shards} lack a text or a picture that decodes, more "
            f"than max_bad_share = {recipe.max_bad_share}. Select them away, or raise it."
        )
    if num_bad:
        say(f"{config.shards}: {num_bad:,} of {len(found):,} samples lack a text or a picture and are left out")
    return good


def _wanted(config: PairsConfig) -> Iterable[tuple[Path, list[int] | None]]:
    read_manifest(config.shards, "shards")
    if config.selection is None:
        return [(shard, None) for shard in list_shards(config.shards)]
    return [(config.shards / name, rows) for name, rows in kept_rows(config.selection)]


def _read_shard(shard: Path, rows: list[int] | None, forms: Sequence[str]) -> list[Pair | None]:
    index, link = open_index(shard), read_link(shard)
    pairs: list[Pair | None] = []
    for row, sample in iterate_texts(shard, rows):
        if not isinstance(sample, Sample) or not sample.images:
            pairs.append(None)
            continue
        place = index.place(row)
        metadata = read_metadata(shard, place) if any(form != CAPTION for form in forms) else {}
        pairs.append(Pair(shard, link, place, _texts(sample, metadata, forms)))
    return pairs


def _texts(sample: Sample, metadata: dict[str, Any], forms: Sequence[str]) -> tuple[str, ...]:
    """What the forms make of a sample, without those whose field is missing or empty."""
    caption = " ".join(part.text for part in sample.parts if isinstance(part, Text))
    texts = [caption if form == CAPTION else _filled(form, metadata) for form in forms]
    return tuple(dict.fromkeys(text for text in texts if text.strip()))


def _filled(form: str, metadata: dict[str, Any]) -> str:
    """Lists are joined by commas; fields are names alone, so that a recipe reads nothing but the json."""
    pieces = []
    for literal, field, _, _ in string.Formatter().parse(form):
        value = metadata.get(field) if field else ""
        if field and value in (None, "", []):
            return ""
        pieces += [literal, ", ".join(map(str, value)) if isinstance(value, list) else str(value)]
    return "".join(pieces)


def _decodes(pair: Pair) -> bool:
    try:
        pair.picture()
    except ValueError:
        return False
    return True


def split(pairs: list[Pair], share: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """(trained on, held out), both in their old order."""
    num_held = max(1, round(share * len(pairs)))
    held = np.isin(np.arange(len(pairs)), np.random.default_rng([seed, 1]).permutation(len(pairs))[:num_held])
    return (
        [pair for pair, out in zip(pairs, held, strict=True) if not out],
        [pair for pair, out in zip(pairs, held, strict=True) if out],
    )


def squares(pairs: Sequence[Pair], rule: PictureRule) -> np.ndarray:
    """Pixels uint8 [N, S, S, 3]."""
    with concurrent.futures.ThreadPoolExecutor(NUM_THREADS) as pool:
        return np.stack(list(pool.map(lambda pair: rule.square(pair.picture()), pairs)))
