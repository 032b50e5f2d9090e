"""What `rebus reshard` reads: the input's shards and the subset, in whatever form they come."""

import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rebus.config import Place, check_recipe
from rebus.engine import list_shards
from rebus.errors import DataError
from rebus.fingerprint import BUILDING, MANIFEST, file_fingerprint, fingerprint, read_manifest
from rebus.log import say
from rebus.selection.read import kept_rows
from rebus.selection.resharding.config import ReshardRecipe
from rebus.selection.resharding.plan import Rows, in_order, match
from rebus.selection.uid_files import read_uids
from rebus.shards.config import ShardsRecipe
from rebus.shards.read import read_index
from rebus.shards.run import run as index_tars
from rebus.storage import download, file_version, is_remote, open_file


@dataclass(frozen=True)
class Input:
    """folder: a shards artifact. shards: those of it that are read. fingerprint: of the whole."""

    folder: Path
    shards: tuple[Path, ...]
    fingerprint: str


@dataclass(frozen=True)
class Wanted:
    """times: int64 [N], how often each row is written. uids: the subset as it came, sorted; missing: its uids that no
    shard has, each once; both None where rows were chosen, not uids."""

    times: NDArray[np.int64]
    uids: NDArray[np.void] | None = None
    missing: NDArray[np.void] | None = None


def open_input(recipe: ReshardRecipe) -> Input:
    """Bare tars are indexed first, where they lie. Raises: DataError."""
    folder = _indexed(recipe)
    manifest = read_manifest(folder, "shards")
    return Input(folder, tuple(_chosen(recipe, list_shards(folder))), manifest.fingerprint)


def _indexed(recipe: ReshardRecipe) -> Path:
    if not is_remote(recipe.input) and any((Path(recipe.input) / mark).is_file() for mark in (MANIFEST, BUILDING)):
        return Path(recipe.input)
    folder = recipe.out.with_name(f"{recipe.out.name}.input")
    say(f"{recipe.input} holds bare tars: their index goes to {folder}")
    tree = {"source": "tars", "input": recipe.input, "out": folder, "link": True, "num_workers": recipe.num_workers}
    index_tars(check_recipe(ShardsRecipe, tree, "rebus reshard"))
    return folder


def _chosen(recipe: ReshardRecipe, shards: list[Path]) -> list[Path]:
    """By place in the order of names, or by the number that `shard_format` makes a name of."""
    first, count = recipe.first_shard, recipe.num_shards
    if recipe.shard_format is None:
        found = shards[first : None if count is None else first + count]
    else:
        by_name = {shard.stem: shard for shard in shards}
        wanted = range(first, first + (len(shards) + 1 if count is None else count))
        names = [recipe.shard_format.format(number).removesuffix(".tar") for number in wanted]
        found = [by_name[name] for name in names if name in by_name]
    if not found or (count is not None and len(found) < count):
        raise DataError(
            f"{recipe.input} has {len(found)} of the shards that first_shard = {first}, num_shards = {count} and "
            f"shard_format = {recipe.shard_format} ask for; it holds {len(shards)}, from {shards[0].name} on."
        )
    return found


def told_sizes(recipe: ReshardRecipe, found: Input) -> dict[str, int]:
    """Shard's file name -> number of samples, by the input's shard table or, failing that, its stats."""
    folder, sizes = str(recipe.input).rstrip("/"), {}
    table = _read_json(f"{folder}/{recipe.shard_table}")
    if table is not None:
        return {Path(name).name: int(size) for name, size in table.items() if isinstance(size, int)}
    for number, shard in enumerate(found.shards, recipe.first_shard):
        stats = _read_json(f"{folder}/{recipe.shard_stats_format.format(number)}")
        if stats is None:  # a folder has them for all of its shards or for none: no request a shard
            break
        sizes[f"{shard.stem}.tar"] = int(stats.get("successes", -1))
    return sizes


def _read_json(place: str) -> dict[str, Any] | None:
    try:
        with open_file(place) as file:
            tree = json.loads(file.read())
    except DataError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise
    except ValueError as error:
        raise DataError(f"{place} is no json ({error}).") from error
    return tree if isinstance(tree, dict) else None


def subset_fingerprint(subset: Place) -> str:
    if is_remote(subset):
        return fingerprint(list(file_version(str(subset))))
    path = Path(subset)
    return read_manifest(path, "selection").fingerprint if path.is_dir() else file_fingerprint(path)


def wanted_rows(recipe: ReshardRecipe, found: Input, rows: Rows) -> Wanted:
    """A selection of these very shards names rows; whatever else names uids, each as often as it is to be written."""
    if recipe.subset is None:
        return Wanted(np.ones(len(rows), np.int64))
    if not is_remote(recipe.subset) and Path(recipe.subset).is_dir():
        selection = Path(recipe.subset)
        if found.fingerprint in read_manifest(selection, "selection").inputs.values():
            return Wanted(_selected(selection, found.shards, rows))
    uids = _read_subset(recipe.subset)
    times, missing = match(uids, rows.uids)
    return Wanted(times, uids, missing)


def _selected(selection: Path, shards: tuple[Path, ...], rows: Rows) -> NDArray[np.int64]:
    times = np.zeros(len(rows), np.int64)
    starts = np.searchsorted(rows.shard, np.arange(len(shards)))
    numbers = {shard.name: number for number, shard in enumerate(shards)}
    for name, kept in kept_rows(selection):
        if name in numbers:
            times[starts[numbers[name]] + np.asarray(kept, dtype=np.int64)] = 1
    return times


def _read_subset(subset: Place) -> NDArray[np.void]:
    """Sorted; repeated uids stay repeated. Raises: DataError."""
    if not is_remote(subset):
        return in_order(read_uids(Path(subset)))
    with TemporaryDirectory() as folder:
        copy = Path(folder) / str(subset).rpartition("/")[2]
        download(str(subset), copy)
        return in_order(read_uids(copy))


def check_sizes(recipe: ReshardRecipe, found: Input) -> list[str]:
    """A line for each shard of which the input's own table or stats tell another size than its index."""
    told = told_sizes(recipe, found)
    rows = []
    for shard in found.shards:
        size = told.get(f"{shard.stem}.tar")
        if size is not None and size != (known := read_index(shard, ["uid"]).num_rows):
            rows.append(f"{shard.stem}: {size:,} samples are told, {known:,} of them are whole")
    return rows
