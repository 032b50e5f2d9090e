"""What came for a shard that is not finished yet. Killed at any moment, a download asks for nothing again that a
journal holds: outcomes are appended as they come, in one write each, and a half-written last one is cut off."""

import json
import os
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

from rebus.shards.download.outcome import Outcome

SUFFIX = ".journal"


def journal_path(tar: Path) -> Path:
    return tar.with_suffix(SUFFIX)


class Journal:
    """Outcomes of one shard on disk, by the number of their row. Of each only its place is held in memory."""

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "a+b", buffering=0)  # noqa: SIM115 - open as long as the shard is
        self._places: dict[int, int] = {}
        self._end = 0
        self._recover()

    def __contains__(self, number: int) -> bool:
        return number in self._places

    @property
    def numbers(self) -> list[int]:
        return sorted(self._places)

    def add(self, outcome: Outcome) -> None:
        """Appends an outcome; once this returns, a kill does not lose it."""
        image = outcome.image
        head = {name: value for name, value in asdict(outcome).items() if name != "image"}
        line = json.dumps([head, len(image), zlib.crc32(image)]).encode() + b"\n"
        block = zlib.crc32(line).to_bytes(4, "little") + line + image
        written = 0
        while written < len(block):  # the system may take less than all of it
            written += os.write(self._file.fileno(), block[written:])
        self._places[outcome.number] = self._end
        self._end += len(block)

    def read(self, number: int) -> Outcome:
        """One outcome again. For one thread at a time."""
        with open(self.path, "rb") as file:
            file.seek(self._places[number])
            found = _read_one(file)
        assert found is not None, f"{self.path} changed while it was open"
        return found

    def close(self) -> None:
        self._file.close()

    def _recover(self) -> None:
        """Finds what an earlier run left; cuts off what it could not finish."""
        with open(self.path, "rb") as file:
            while (outcome := _read_one(file)) is not None:
                self._places[outcome.number] = self._end
                self._end = file.tell()
        os.truncate(self.path, self._end)


def _read_one(file: BinaryIO) -> Outcome | None:
    """The outcome at the file's position; None at the end, and where it is not whole."""
    check, line = file.read(4), file.readline()
    if not line.endswith(b"\n") or zlib.crc32(line).to_bytes(4, "little") != check:
        return None
    head, num_bytes, crc = json.loads(line)
    image = file.read(num_bytes)
    if len(image) != num_bytes or zlib.crc32(image) != crc:
        return None
    return Outcome(**head, image=image)
