"""Writes WebDataset shards whose bytes depend on their samples alone: no times, no owners, a fixed order."""

import io
import os
import re
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from rebus.errors import DataError

_ORDER = {"txt": 1, "json": 2}  # images first, as img2dataset does


def write_shard(tar: Path, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> int:
    """Writes samples (key, extension -> bytes) as one tar, whole or not at all. Returns their number.

    Keys hold no dot after the last slash: WebDataset cuts there. Raises: DataError for such a key.
    """
    tar.parent.mkdir(parents=True, exist_ok=True)
    temporary = tar.with_name(f".{tar.name}.{os.getpid()}.tmp")
    num_samples = 0
    try:
        with open(temporary, "wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
                for key, members in samples:
                    _add(archive, key, members)
                    num_samples += 1
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, tar)
    finally:
        temporary.unlink(missing_ok=True)
    return num_samples


def member_order(extension: str) -> tuple[int, int, str]:
    """Images in their number's order, then txt, then json."""
    number = re.match(r"\d+", extension)
    return _ORDER.get(extension, 0), int(number[0]) if number else 0, extension


def _add(archive: tarfile.TarFile, key: str, members: Mapping[str, bytes]) -> None:
    if not key or "." in key.rpartition("/")[2]:
        raise DataError(f"key '{key}' cannot be written: WebDataset cuts keys at their first dot. Rename the sample.")
    for extension in sorted(members, key=member_order):
        info = tarfile.TarInfo(f"{key}.{extension}")  # mtime, uid and gid are 0, owner names are empty
        info.size = len(members[extension])
        archive.addfile(info, io.BytesIO(members[extension]))
