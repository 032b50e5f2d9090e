"""WebDataset shards that exist already (img2dataset's, DataComp's): indexed where they lie, or copied."""

import hashlib
import os
import shutil
from pathlib import Path

from rebus.engine import list_shards
from rebus.fingerprint import MANIFEST, fingerprint, write_atomically
from rebus.shards.index import index_path, is_indexed, quarantine_path, write_index

INDEXING = ".indexing"
"""Marks an index that is being made. It is not fingerprint.BUILDING: to prepare_out a folder with that mark is
Rebus' own and may be removed whole, which must never happen to somebody's tars."""

WHOLE_BYTES = 64 * 2**20  # up to here every byte of a tar counts
NUM_SPOTS, SPOT_BYTES = 256, 65_536  # beyond: 16 MiB of it, since a stage must not read terabytes to see what is new


def tars_fingerprint(folder: Path) -> str:
    """Names, sizes and bytes of the tars; of tars above 64 MiB 256 evenly spread spots of 64 KiB."""
    return fingerprint({tar.name: _spot_fingerprint(tar) for tar in list_shards(folder)})


def _spot_fingerprint(tar: Path) -> list[object]:
    num_bytes = tar.stat().st_size
    digest = hashlib.sha256()
    with open(tar, "rb") as file:
        if num_bytes <= WHOLE_BYTES:
            digest.update(file.read())
        else:
            for spot in range(NUM_SPOTS):
                file.seek((num_bytes - SPOT_BYTES) * spot // (NUM_SPOTS - 1))
                digest.update(file.read(SPOT_BYTES))
    return [num_bytes, digest.hexdigest()[:32]]


def prepare_in_place(folder: Path, wanted: str) -> None:
    """Keeps what an interrupted indexing of the same tars left; removes any other index. Never touches a tar."""
    marker = folder / INDEXING
    if not marker.is_file() or marker.read_text() != wanted:
        (folder / MANIFEST).unlink(missing_ok=True)
        for tar in list_shards(folder):
            quarantine_path(tar).unlink(missing_ok=True)
            index_path(tar).unlink(missing_ok=True)
        write_atomically(marker, wanted)
    (folder / MANIFEST).unlink(missing_ok=True)


def adopt(tar: Path, out: Path) -> Path:
    """Brings one tar into `out` (copied unless it lies there already) and indexes it. Returns the tar in `out`."""
    target = out / tar.name
    if is_indexed(target):
        return target
    if target.resolve() != tar.resolve():
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        shutil.copyfile(tar, temporary)
        os.replace(temporary, target)
    write_index(target)
    return target
