"""WebDataset shards that exist already (img2dataset's, DataComp's): indexed where they lie, on disk or behind a
URL, or copied."""

import hashlib
from pathlib import Path

from rebus.config import Place
from rebus.engine import list_shards
from rebus.errors import DataError
from rebus.fingerprint import MANIFEST, fingerprint, write_atomically
from rebus.shards.index import index_path, is_indexed, quarantine_path, write_index
from rebus.shards.link import SUFFIX, Link, write_link
from rebus.storage import download, file_version, is_remote, list_versions

INDEXING = ".indexing"
"""Marks an index that is being made. It is not fingerprint.BUILDING: to prepare_out a folder with that mark is
Rebus' own and may be removed whole, which must never happen to somebody's tars."""

WHOLE_BYTES = 64 * 2**20  # up to here every byte of a tar counts
NUM_SPOTS, SPOT_BYTES = 256, 65_536  # beyond: 16 MiB of it, since a stage must not read terabytes to see what is new


def list_tars(input: Place) -> list[str]:
    """The tars of a folder on disk or behind a URL, in name order, as paths or URLs. Raises: DataError."""
    return list(_versions(input))


def _versions(input: Place) -> dict[str, tuple[object, ...]]:
    found = list_versions(str(input), ".tar")
    if not found:
        raise DataError(f"{input} holds no .tar file. `input` is the folder that the tars themselves lie in.")
    return found


def tars_fingerprint(input: Place) -> str:
    """Names, sizes and bytes of the tars; of tars above 64 MiB 256 evenly spread spots of 64 KiB. Of remote tars names,
    sizes and ETags, from one listing."""
    versions = _versions(input)
    if is_remote(input):
        return fingerprint({tar.rpartition("/")[2]: list(version) for tar, version in versions.items()})
    return fingerprint({Path(tar).name: spot_fingerprint(Path(tar)) for tar in versions})


def spot_fingerprint(tar: Path) -> list[object]:
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


def adopt(tar: str, *, out: Path, link: bool) -> Path:
    """Brings one tar into `out` and indexes it. Returns the shard: the tar, or the link that stands for it.

    tar: a path or a URL. Where it lies in `out` itself it stays; else link=True leaves the data where it is, and
    link=False copies it, whole or not at all. A shard that is finished is left as it is. Raises: DataError.
    """
    name = tar.rpartition("/")[2]
    inside = not is_remote(tar) and (out / name).resolve() == Path(tar).resolve()
    shard = (out / name).with_suffix(SUFFIX) if link and not inside else out / name
    if is_indexed(shard):
        return shard
    if link and not inside:
        write_link(shard, Link(tar if is_remote(tar) else str(Path(tar).resolve()), version=file_version(tar)))
    elif not inside:
        download(tar, shard)
    write_index(shard)
    return shard
