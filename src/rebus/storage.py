"""Bytes of files on disk or behind a URL (S3-compatible storage and whatever else fsspec knows), by range.

Credentials and endpoint come from the environment, as for every tool that speaks S3 (AWS_ACCESS_KEY_ID,
AWS_ENDPOINT_URL ...).
"""

import os
import shutil
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from rebus.errors import DataError, StrangerError, UnreachableError

NUM_TOGETHER = 256  # remote ranges asked for at once: what hides the way there
MAX_GAP = 8192  # bytes read for nothing that cost less than a request of their own
MAX_SPAN = 8 * 2**20  # of one request; of what a file that is read from its beginning is fetched ahead
_OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {"max_concurrency": 1},  # a whole file is one request and one stream; several files come at a time instead
}
ADVICE = (
    "Check bucket and name, the credentials (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY or AWS_PROFILE) and the endpoint "
    "(AWS_ENDPOINT_URL)."
)
_OPENED: dict[tuple[str, int], Any] = {}
_OPENING = threading.Lock()


def is_remote(place: str | Path) -> bool:
    return "://" in str(place)


def list_versions(folder: str, suffix: str) -> dict[str, tuple[object, ...]]:
    """The same files, each with its `file_version`; of a remote folder by one listing, without a request a file."""
    if not is_remote(folder):
        if not Path(folder).is_dir():
            raise DataError(f"no folder at {folder}.")
        return {str(path): file_version(str(path)) for path in sorted(Path(folder).glob(f"*{suffix}"))}
    with _reaching(folder):
        system, path = _system(folder)
        entries = [one for one in system.ls(path, detail=True) if one["type"] == "file"]
        found = {system.unstrip_protocol(one["name"]): _version(one) for one in entries if one["name"].endswith(suffix)}
    return dict(sorted(found.items()))


def file_size(place: str) -> int:
    """Bytes. Raises: DataError."""
    return cast(int, file_version(place)[0])


def file_version(place: str) -> tuple[object, ...]:
    """What changes when the file does: its size and, where storage keeps one, its ETag. Raises: DataError."""
    with _reaching(place):
        return (os.path.getsize(place),) if not is_remote(place) else _version(_system(place)[0].info(place))


@contextmanager
def open_file(place: str) -> Iterator[BinaryIO]:
    """Opens a file to be read from the beginning; a remote one is fetched ahead in blocks. Raises: DataError, also
    where it cannot be read on later."""
    with _reaching(place), _opened(place) as file:
        yield file


def _opened(place: str) -> BinaryIO:
    if not is_remote(place):
        return open(place, "rb")
    return cast(BinaryIO, _system(place)[0].open(place, "rb", block_size=MAX_SPAN, cache_type="readahead"))


def download(place: str, target: Path, version: tuple[object, ...] = ()) -> None:
    """Copies a file from disk or a URL, whole or not at all, in one sequential pass.

    version: the `file_version` that is wanted. Raises: DataError; StrangerError where the file is another by now.
    """
    version = version or file_version(place)
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{threading.get_native_id()}.tmp")
    try:
        with _reaching(place):
            if is_remote(place):
                _system(place)[0].get_file(place, str(temporary))
            else:
                shutil.copyfile(place, temporary)
        found = (temporary.stat().st_size, *file_version(place)[1:])
        if found != version:
            raise StrangerError(f"{place} changed: {version} was wanted, {found} came. Run `rebus shards` again.")
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def upload(source: Path, place: str) -> tuple[object, ...]:
    """Copies a file on disk to a URL. Storage shows an object when it is whole. Returns its `file_version`.

    Raises: DataError."""
    with _reaching(place):
        _system(place)[0].put_file(str(source), place)
    return file_version(place)


def read_range(place: str, offset: int, length: int) -> bytes:
    """One range of a file: one seek on disk, one request elsewhere. Raises: DataError."""
    with _reaching(place):
        spans = [(offset, offset + length, 1)]
        return (_remote_spans(place, spans) if is_remote(place) else _local_spans(place, spans))[0]


def read_ranges(place: str, offsets: Sequence[int], lengths: Sequence[int]) -> list[bytes]:
    """Many ranges of one file, neighbours in one piece; of a remote file many pieces at once. A range beyond the end
    comes back short. Raises: DataError."""
    spans = merge_ranges(offsets, lengths)
    with _reaching(place):
        blobs = _remote_spans(place, spans) if is_remote(place) else _local_spans(place, spans)
    found: list[bytes] = []
    for (start, _, number), blob in zip(spans, blobs, strict=True):
        taken = slice(len(found), len(found) + number)
        for offset, length in zip(offsets[taken], lengths[taken], strict=True):
            found.append(blob[offset - start : offset - start + length])
    return found


def merge_ranges(offsets: Sequence[int], lengths: Sequence[int]) -> list[tuple[int, int, int]]:
    """Joins ranges that follow each other within MAX_GAP, up to MAX_SPAN: (start, end, number of ranges) of each."""
    spans: list[tuple[int, int, int]] = []
    for offset, length in zip(offsets, lengths, strict=True):
        if spans:
            start, end, number = spans[-1]
            if start <= offset <= end + MAX_GAP and offset + length - start <= MAX_SPAN:
                spans[-1] = (start, max(end, offset + length), number + 1)
                continue
        spans.append((offset, offset + length, 1))
    return spans


def _local_spans(place: str, spans: Sequence[tuple[int, int, int]]) -> list[bytes]:
    descriptor = os.open(place, os.O_RDONLY)
    try:
        return [os.pread(descriptor, end - start, start) for start, end, _ in spans]
    finally:
        os.close(descriptor)


def _remote_spans(place: str, spans: Sequence[tuple[int, int, int]]) -> list[bytes]:
    system = _system(place)[0]
    found: list[bytes] = []
    for first in range(0, len(spans), NUM_TOGETHER):
        part = spans[first : first + NUM_TOGETHER]
        wanted = [(start, end) for start, end, _ in part if end > start]
        blobs = iter(system.cat_ranges([place] * len(wanted), [one[0] for one in wanted], [one[1] for one in wanted]))
        found += [_received(next(blobs)) if end > start else b"" for start, end, _ in part]
    return found


def _received(blob: bytes | BaseException) -> bytes:
    """fsspec hands errors back among the ranges; one beyond the end is empty, as it is on disk."""
    if not isinstance(blob, BaseException):
        return blob
    if "416" in str(blob.__cause__) or "InvalidRange" in str(blob.__cause__):
        return b""
    raise blob


def _version(about: dict[str, Any]) -> tuple[object, ...]:
    return (int(about["size"]), str(about["ETag"])) if "ETag" in about else (int(about["size"]),)


def _system(place: str) -> tuple[Any, str]:
    protocol, _, path = place.partition("://")
    return _filesystem(protocol), path


def _filesystem(protocol: str) -> Any:
    """One a process, connected before a second thread gets it: its event loop does not survive a fork, and several
    threads would each open a connection of which all but one leak. It keeps no listings, which would hide changes."""
    import fsspec.asyn

    with _OPENING:
        known = (protocol, os.getpid())
        if known not in _OPENED:
            try:
                system = fsspec.filesystem(protocol, use_listings_cache=False, **_OPTIONS.get(protocol, {}))
            except (ImportError, ValueError) as error:
                raise DataError(
                    f"{protocol}:// cannot be read: {error}. S3 needs `pip install 'rebus[s3]'`."
                ) from error
            if hasattr(system, "set_session"):
                fsspec.asyn.sync(system.loop, system.set_session)
            _OPENED[known] = system
        return _OPENED[known]


def forget() -> None:
    """Lets go of what was opened, so that credentials and endpoint are looked up again."""
    with _OPENING:
        for system in _OPENED.values():
            type(system).clear_instance_cache()
        _OPENED.clear()


@contextmanager
def _reaching(place: str) -> Iterator[None]:
    try:
        yield
    except _faults() as error:
        kind = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
        is_web = place.startswith(("http://", "https://"))
        advice = "Check the address." if is_web else ADVICE if is_remote(place) else "Check the path."
        known = not is_remote(place) or isinstance(error, FileNotFoundError)
        raise (DataError if known else UnreachableError)(f"{place} cannot be read: {kind}{error}. {advice}") from error


def _faults() -> tuple[type[BaseException], ...]:
    """What storage raises when it cannot be reached, not all of it OSError. What was never imported is not raised."""
    names = (
        ("botocore.exceptions", "BotoCoreError"),
        ("botocore.exceptions", "ClientError"),
        ("aiohttp", "ClientError"),
    )
    return (OSError, *(getattr(sys.modules[module], name) for module, name in names if module in sys.modules))
