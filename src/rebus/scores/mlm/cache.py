"""Answers on disk, written as they come: a run that is killed asks no question twice."""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from rebus.errors import DataError
from rebus.scores.mlm.answers import Answer, from_json, to_json

AT_ONCE = 500  # keys in one query; sqlite takes 999 in its oldest builds


class AnswerCache:
    """A file that several processes may read and write; on a disk of this machine. Failures are not kept."""

    def __init__(self, path: Path | None) -> None:
        """path: None keeps nothing."""
        self.path = path

    @contextmanager
    def opened(self) -> "Iterator[OpenCache]":
        """Raises: DataError where the file is no cache, or cannot be written."""
        if self.path is None:
            yield OpenCache(None)
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=60, isolation_level=None)) as connection:
                connection.execute("PRAGMA journal_mode=WAL")  # a killed process loses nothing, without a sync a row
                connection.execute("PRAGMA synchronous=NORMAL")
                connection.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL)")
                yield OpenCache(connection)
        except sqlite3.Error as error:
            raise DataError(
                f"the answers in {self.path} cannot be kept: {error}. Check the disk, or name another `cache`."
            ) from error


class OpenCache:
    def __init__(self, connection: sqlite3.Connection | None) -> None:
        self._connection = connection

    def find(self, keys: Sequence[str]) -> dict[str, Answer]:
        """Those of the keys that have an answer."""
        found: dict[str, Answer] = {}
        if self._connection is None:
            return found
        for start in range(0, len(keys), AT_ONCE):
            some = keys[start : start + AT_ONCE]
            query = f"SELECT key, answer FROM answers WHERE key IN ({','.join('?' * len(some))})"
            found |= {key: from_json(line) for key, line in self._connection.execute(query, some)}
        return found

    def keep(self, key: str, answer: Answer) -> None:
        if self._connection is not None and answer.text is not None:
            self._connection.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, to_json(answer)))
