"""The indexes of a plan's shards, opened as they are needed and closed as others are."""

import threading
from collections import OrderedDict
from pathlib import Path

from rebus.shards.read import Index, open_index

MAX_ROWS = 8_000_000
"""About 100 bytes a row: 800 MB. A plan in blocks needs the rows of a block or two at a time."""


class Indexes:
    """Keeps the indexes read last, up to `max_rows` samples together, for several threads."""

    def __init__(self, max_rows: int = MAX_ROWS) -> None:
        self.max_rows = max_rows
        self._lock = threading.Lock()
        self._opened: OrderedDict[Path, Index] = OrderedDict()
        self._num_rows = 0

    def open(self, shard: Path) -> Index:
        """Raises: DataError, StrangerError (see shards.read.open_index)."""
        with self._lock:
            if shard in self._opened:
                self._opened.move_to_end(shard)
                return self._opened[shard]
        index = open_index(shard)  # not under the lock: two threads that open one at the same time open the same
        with self._lock:
            if shard not in self._opened:
                self._opened[shard] = index
                self._num_rows += index.num_samples
            while self._num_rows > self.max_rows and len(self._opened) > 1:
                self._num_rows -= self._opened.popitem(last=False)[1].num_samples
        return index
