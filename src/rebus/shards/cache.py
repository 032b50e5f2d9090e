"""Remote shards on disk while they are in use: each is fetched whole, in one sequential stream, then read by seeks.

Storage that serves a shard in one request answers a thousand small ones slowly and bills each. A block of shards that
fits in the cache is shuffled on disk.
"""

import os
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from rebus.errors import DataError
from rebus.fingerprint import fingerprint
from rebus.storage import download, file_version, is_remote, read_ranges

SUFFIX = ".data"
STALE_SECONDS = 3600  # a half-fetched file that grew no more for so long is nobody's, whoever has its number now


class ShardCache:
    """A folder of remote files, least recently used ones removed. Threads and processes of a machine may share it.

    A file appears under its name when it is whole. Threads of a process that want the same file wait for one fetch;
    another process may fetch it again. Files in flight count: `max_bytes` holds for what one process fetches, and
    others may exceed it by what they have in flight. Nothing is locked, so a kill at any time leaves at most a
    temporary file, which the next cache on the folder sweeps.
    """

    def __init__(self, folder: Path, max_bytes: int):
        self.folder, self.max_bytes = folder, max_bytes
        self._state = threading.Condition()
        self._in_flight: dict[Path, int] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self._sweep()

    def __reduce__(self) -> tuple[type, tuple[Path, int]]:
        return ShardCache, (self.folder, self.max_bytes)  # a worker process opens its own on the same folder

    def local(self, data: str, version: tuple[object, ...] = ()) -> Path:
        """Where a file lies on this disk; a remote one is fetched first. It may be evicted: open it at once.

        version: of the wanted data (Link.version), where the caller knows it; saves a request.
        Raises: DataError where it cannot be fetched, is not that version, or is larger than the cache.
        """
        if not is_remote(data):
            return Path(data)
        version = version or file_version(data)
        path = self.folder / f"{fingerprint([data, list(version)])}{SUFFIX}"
        while not self._touch(path):
            if self._reserve(path, int(str(version[0])), data):
                self._fetch(data, version, path)
        return path

    def read_ranges(
        self, data: str, offsets: Sequence[int], lengths: Sequence[int], version: tuple[object, ...] = ()
    ) -> list[bytes]:
        """storage.read_ranges, of a remote file from its copy here."""
        while True:
            path = self.local(data, version)
            try:
                return read_ranges(str(path), offsets, lengths)
            except DataError as error:
                if not (is_remote(data) and isinstance(error.__cause__, FileNotFoundError)):
                    raise  # else it was evicted between the two lines: fetch it again

    def _touch(self, path: Path) -> bool:
        """Marks a file as used now. False where it is not here."""
        try:
            os.utime(path)
        except FileNotFoundError:
            return False
        return True

    def _reserve(self, path: Path, num_bytes: int, data: str) -> bool:
        """Waits until there is room for a file, and makes it. False where another thread fetched that file."""
        if num_bytes > self.max_bytes:
            raise DataError(
                f"{data} has {num_bytes} bytes, more than the cache in {self.folder} may hold: {self.max_bytes}. "
                "Give it room for several shards, or read by range without a cache."
            )
        with self._state:
            if path in self._in_flight:
                self._state.wait_for(lambda: path not in self._in_flight)
                return False
            self._state.wait_for(lambda: sum(self._in_flight.values()) + num_bytes <= self.max_bytes)
            if path in self._in_flight or path.exists():
                return False
            self._in_flight[path] = num_bytes
            self._evict(self.max_bytes - sum(self._in_flight.values()))
        return True

    def _fetch(self, data: str, version: tuple[object, ...], path: Path) -> None:
        try:
            download(data, path, version)
        finally:
            with self._state:
                del self._in_flight[path]
                self._state.notify_all()

    def _evict(self, max_bytes: int) -> None:
        """Removes files until the others fit. Whoever reads one has it open: its bytes stay until it is closed."""
        files = []
        for path in self.folder.glob(f"*{SUFFIX}"):
            with suppress(FileNotFoundError):
                about = path.stat()
                files.append((about.st_mtime_ns, about.st_size, path))
        excess = sum(size for _, size, _ in files) - max_bytes
        for _, size, path in sorted(files):
            if excess <= 0:
                return
            path.unlink(missing_ok=True)
            excess -= size

    def _sweep(self) -> None:
        """Removes what killed processes were fetching: `.<name>.data.<process>-<thread>.tmp`."""
        for path in self.folder.glob(f".*{SUFFIX}.*.tmp"):
            with suppress(FileNotFoundError):
                process = path.name.split(".")[-2].partition("-")[0]
                if not _is_running(process) or time.time() - path.stat().st_mtime > STALE_SECONDS:
                    path.unlink()


def _is_running(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True
    return True
