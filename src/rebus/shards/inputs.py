"""What raw data is, in a few digits: a shards folder is made again where its input changed."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from rebus.config import Place
from rebus.errors import DataError
from rebus.fingerprint import BUILDING, MANIFEST, file_fingerprint, fingerprint
from rebus.shards.config import ShardsRecipe
from rebus.shards.sources.tars import spot_fingerprint, tars_fingerprint
from rebus.shards.sources.urls import list_tables
from rebus.storage import is_remote


def input_fingerprints(recipe: ShardsRecipe) -> dict[str, str]:
    """Name -> fingerprint of all that the shards are made of. Raises: DataError where it is missing."""
    if recipe.source == "tars":
        return {"input": tars_fingerprint(recipe.input)}
    if recipe.source == "urls":
        return {"input": _tables_fingerprint(recipe.input)}
    if recipe.source in ("hub", "open_qwen2vl"):
        paths = {"input": recipe.table, "tokenizer": recipe.tokenizer}
        inputs = {name: files_fingerprint(path) for name, path in paths.items() if path is not None}
        return inputs if recipe.root is None else {**inputs, "root": tree_fingerprint(recipe.root)}
    if not recipe.table.is_file():
        raise DataError(
            f"no table at {recipe.input}. `input` is the CSV, TSV, JSON or JSONL file of `{recipe.source}`."
        )
    inputs = {"input": file_fingerprint(recipe.table)}
    if not recipe.link or recipe.check_images:
        inputs["root"] = tree_fingerprint(recipe.image_root)
    return inputs


def _tables_fingerprint(input: Place) -> str:
    """Of tables of URLs, remote ones too: names and spots of the bytes, or what storage says of them."""
    found = list_tables(input)
    names = {one: one.removeprefix(str(input)).lstrip("/") for one in found}  # empty for a table alone
    is_far = is_remote(input)
    return fingerprint({names[one]: list(found[one]) if is_far else spot_fingerprint(Path(one)) for one in found})


def files_fingerprint(path: Path) -> str:
    """Names, sizes and spots of the bytes of all files under a folder, or of the one file."""
    if path.is_file():
        return fingerprint(spot_fingerprint(path))
    found = {file.relative_to(path).as_posix(): spot_fingerprint(file) for file in path.rglob("*") if file.is_file()}
    if not found:
        raise DataError(f"no file at {path}.")
    return fingerprint(found)


def tree_fingerprint(root: Path) -> str:
    """Names and sizes of all files under a folder: bytes would take as long as the conversion itself. Links to folders
    are followed; folders that Rebus made are left out, so that `root: .` may hold runs.

    The hashes of the files are added up, so that ten million of them need be neither sorted nor kept.
    """
    if not root.is_dir():
        raise DataError(f"no folder at {root}. Set `root` to the folder that image paths start from.")
    total = 0
    for name, size in _files(str(root), ""):
        digest = hashlib.blake2b(f"{name}\0{size}".encode("utf-8", "surrogateescape"), digest_size=16)
        total += int.from_bytes(digest.digest(), "little")
    return f"{total % 2**128:032x}"


def _files(folder: str, name: str, around: tuple[tuple[int, int], ...] = ()) -> Iterator[tuple[str, int]]:
    """around: the folders that this one lies in, by which a circle of links is found."""
    stat = os.stat(folder)
    own = (stat.st_dev, stat.st_ino)
    if own in around or (name and any(os.path.exists(os.path.join(folder, mark)) for mark in (MANIFEST, BUILDING))):
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _files(entry.path, f"{name}{entry.name}/", (*around, own))
            elif entry.is_file():
                yield f"{name}{entry.name}", entry.stat().st_size
