"""Bytes of files on disk or behind a URL (S3-compatible storage and whatever else fsspec knows), by range.

Credentials and endpoint come from the environment, as for every tool that speaks S3 (AWS_ACCESS_KEY_ID,
AWS_ENDPOINT_URL ...).
"""

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, cast

from rebus.errors import DataError

NUM_TOGETHER = 256  # remote ranges asked for at once: what hides the way there


def is_remote(place: str | Path) -> bool:
    return "://" in str(place)


def list_files(folder: str, suffix: str) -> list[str]:
    """The files of a folder that end so, in name order, as paths or URLs. Raises: DataError where it is missing."""
    if not is_remote(folder):
        if not Path(folder).is_dir():
            raise DataError(f"no folder at {folder}.")
        return sorted(str(path) for path in Path(folder).glob(f"*{suffix}"))
    system, path = _system(folder)
    try:
        names = system.ls(path, detail=False)
    except OSError as error:
        raise _unreachable(folder, error) from error
    return sorted(system.unstrip_protocol(name) for name in names if name.endswith(suffix))


def file_size(place: str) -> int:
    """Bytes. Raises: DataError."""
    try:
        return os.path.getsize(place) if not is_remote(place) else int(_system(place)[0].size(place))
    except OSError as error:
        raise _unreachable(place, error) from error


def file_version(place: str) -> tuple[object, ...]:
    """What changes when the file does: its size and, where storage keeps one, its ETag."""
    if not is_remote(place):
        return (file_size(place),)
    try:
        about = _system(place)[0].info(place)
    except OSError as error:
        raise _unreachable(place, error) from error
    return (about["size"], str(about["ETag"])) if "ETag" in about else (about["size"],)


def open_file(place: str) -> BinaryIO:
    """Opens a file to be read from the beginning; a remote one is fetched ahead in blocks."""
    try:
        return open(place, "rb") if not is_remote(place) else cast(BinaryIO, _system(place)[0].open(place, "rb"))
    except OSError as error:
        raise _unreachable(place, error) from error


def read_range(place: str, offset: int, length: int) -> bytes:
    """One range of a file: one seek on disk, one request elsewhere. Raises: DataError."""
    return read_ranges(place, [offset], [length])[0]


def read_ranges(place: str, offsets: Sequence[int], lengths: Sequence[int]) -> list[bytes]:
    """Many ranges of one file; of a remote one many at once. A range beyond the end comes back short."""
    if not is_remote(place):
        try:
            with open(place, "rb", buffering=0) as file:
                number = file.fileno()
                return [os.pread(number, length, offset) for offset, length in zip(offsets, lengths, strict=True)]
        except OSError as error:
            raise _unreachable(place, error) from error
    ends = [offset + length for offset, length in zip(offsets, lengths, strict=True)]
    found: list[bytes] = []
    try:
        for start in range(0, len(ends), NUM_TOGETHER):
            part = slice(start, start + NUM_TOGETHER)
            found += _system(place)[0].cat_ranges([place] * len(ends[part]), list(offsets[part]), ends[part])
    except OSError as error:
        raise _unreachable(place, error) from error
    return found


@lru_cache(maxsize=64)
def _filesystem(protocol: str) -> Any:
    import fsspec

    try:
        return fsspec.filesystem(protocol)
    except (ImportError, ValueError) as error:
        raise DataError(f"{protocol}:// cannot be read: {error}. S3 needs `pip install 'rebus[s3]'`.") from error


def _system(place: str) -> tuple[Any, str]:
    protocol, _, path = place.partition("://")
    return _filesystem(protocol), path


def _unreachable(place: str, error: OSError) -> DataError:
    return DataError(f"{place} cannot be read: {error}. Check the path, and for a URL the credentials and endpoint.")
