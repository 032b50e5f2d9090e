"""How often each document comes in an epoch: repeats and weights of folders, as arithmetic."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from rebus.config import check_recipe
from rebus.errors import ConfigError
from rebus.packs.config import ShardsFolder


def list_folders(entries: Sequence[Path | ShardsFolder], selection: Path | None = None) -> list[ShardsFolder]:
    """The folders that a recipe names; a path to a JSON file stands for those that it lists, relative to here.

    selection: of the one folder. Raises: ConfigError where it could be of another, or weights are missing.
    """
    folders: list[ShardsFolder] = []
    for entry in entries:
        if isinstance(entry, ShardsFolder):
            folders.append(entry)
        elif entry.suffix == ".json":
            folders += _read_mixture(entry)
        else:
            folders.append(ShardsFolder(folder=entry))
    weighted = sum(one.weight is not None for one in folders)
    if weighted not in (0, len(folders)):
        raise ConfigError(f"{weighted} of {len(folders)} folders have a `weight`: give one to each, or to none.")
    doubled = [one for one, number in Counter(one.folder.resolve() for one in folders).items() if number > 1]
    if doubled:
        raise ConfigError(f"{doubled[0]} stands twice in `shards:`. Name it once, with `repeat: 2`.")
    if selection is None:
        return folders
    if len(folders) > 1 or folders[0].selection is not None:
        raise ConfigError(
            f"`selection: {selection}` goes with one shards folder, but `shards:` names {len(folders)}. Give each its "
            "own: `shards: [{folder: ..., selection: ...}]`."
        )
    return [folders[0].model_copy(update={"selection": selection})]


def shard_blocks(num_shards: Sequence[int], per_block: int | None) -> np.ndarray:
    """The block of each shard, int32. num_shards: of each folder; per_block: None puts all in one.

    Folders are interleaved in proportion to their shards, so that every block holds its share of each: a mixture
    stays mixed at every moment of an epoch.
    """
    places = np.concatenate([(np.arange(number) + 0.5) / number for number in num_shards])
    rank = np.argsort(np.argsort(places, kind="stable"), kind="stable")
    return (rank // (per_block or len(rank))).astype(np.int32)


def _read_mixture(path: Path) -> list[ShardsFolder]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["shards"]
        return [check_recipe(ShardsFolder, dict(entry), f"{path}, entry {i}") for i, entry in enumerate(entries)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f'{path} is no mixture ({error!r}): {{"shards": [{{"folder": ...}}]}} is wanted.') from error


def folder_repeats(
    counts: Sequence[int], folders: Sequence[ShardsFolder], resample: Literal["sqrt"] | None = None
) -> list[float]:
    """How often an epoch repeats each folder. counts: documents of each.

    Under weights an epoch has as many documents as all folders together, each folder its share. resample "sqrt" makes
    weights of the square roots of what the folders (repeated) hold, as PaddleMIX does.
    """
    repeats = [one.repeat if one.repeat is not None else 1.0 for one in folders]
    sizes = [count * repeat for count, repeat in zip(counts, repeats, strict=True)]
    if resample == "sqrt":
        weights = [math.sqrt(size) for size in sizes]
    elif folders[0].weight is not None:
        weights = [one.weight or 0.0 if count else 0.0 for one, count in zip(folders, counts, strict=True)]
    else:
        return repeats
    scale = sum(sizes) / (sum(weights) or 1.0)
    return [weight * scale / count if count else 1.0 for weight, count in zip(weights, counts, strict=True)]


def expand(bounds: np.ndarray, repeats: Sequence[float], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The documents of an epoch. bounds: int [folders + 1], where each folder's documents begin.

    A repeat of 2.3 is every document twice and a seeded 30% (rounded) once more.

    Returns: (document int32 [m], place float64 [m]). Sorted by place, an epoch is in seeded random order, and copies
    of a document stand as far apart as they can: copy i of k is in the i-th k-th of the epoch.
    """
    num_documents = int(bounds[-1])
    words = np.random.PCG64(seed).random_raw(num_documents)
    copies = np.empty(num_documents, np.int32)
    for start, end, repeat in zip(bounds[:-1].tolist(), bounds[1:].tolist(), repeats, strict=True):
        copies[start:end] = math.floor(repeat)
        num_more = round((end - start) * (repeat - math.floor(repeat)))
        copies[start + np.argsort(words[start:end], kind="stable")[:num_more]] += 1
    uniform = (_remix(words) >> np.uint64(11)) * 2.0**-53
    if (copies == 1).all():
        return np.arange(num_documents, dtype=np.int32), uniform
    document = np.repeat(np.arange(num_documents, dtype=np.int32), copies)
    nth = np.arange(len(document)) - np.repeat(np.cumsum(copies) - copies, copies)
    return document, (uniform[document] + nth) / copies[document]


def _remix(words: np.ndarray) -> np.ndarray:
    """Other bits of the same words: a document's place must not depend on whether it is repeated once more."""
    return words * np.uint64(0x9E3779B97F4A7C15)
