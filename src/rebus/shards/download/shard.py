"""The outcomes of a slice -> a shard: its tar, its tables, what img2dataset writes beside a tar, index and quarantine.
Every file is written whole or not at all, the quarantine last: it says that the shard is done."""

import io
import json
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rebus.fingerprint import write_atomically
from rebus.records import Damage
from rebus.shards.download.config import Download
from rebus.shards.download.journal import Journal, journal_path
from rebus.shards.download.outcome import NOT_FETCHED, NOT_RESIZED, SUCCESS, Outcome
from rebus.shards.index import is_indexed, write_index
from rebus.shards.write import write_shard

TYPES = {name: pa.string() for name in ("key", "url", "caption", "status", "reason", "error_message", "sha256", "exif")}
TYPES |= dict.fromkeys(("width", "height", "original_width", "original_height"), pa.int32())
"""Columns of the metadata that every row has; those of the table come after them."""


def rows_path(tar: Path) -> Path:
    """Metadata of every row, failures too; img2dataset's name for it."""
    return tar.with_suffix(".parquet")


def stats_path(tar: Path) -> Path:
    return tar.with_name(f"{tar.stem}_stats.json")


def is_done(tar: Path) -> bool:
    return is_indexed(tar) and rows_path(tar).is_file() and stats_path(tar).is_file()


class OpenShard:
    """A shard on its way. num_open: rows that are being asked for. is_fed: all of its rows have been begun."""

    def __init__(self, tar: Path):
        self.tar = tar
        self.journal = Journal(journal_path(tar))
        self.num_open, self.is_fed = 0, False
        self.started = time.time()

    @property
    def is_complete(self) -> bool:
        return self.is_fed and not self.num_open

    def finish(self, options: Download) -> None:
        """Writes all files. The order of rows is the table's, so that the bytes do not tell which came first."""
        self.journal.close()
        damages: list[Damage] = []
        rows: list[dict[str, Any]] = []
        write_shard(self.tar, self._samples(options.encode_format, rows, damages))
        write_atomically(rows_path(self.tar), _parquet(rows))
        write_atomically(stats_path(self.tar), json.dumps(self._stats(rows), indent=1) + "\n")
        write_index(self.tar, damages)
        self.journal.path.unlink(missing_ok=True)

    def _samples(
        self, extension: str, rows: list[dict[str, Any]], damages: list[Damage]
    ) -> Iterator[tuple[str, dict[str, bytes]]]:
        for number in self.journal.numbers:
            outcome = self.journal.read(number)
            rows.append({**outcome.metadata, "reason": outcome.reason or None})
            if outcome.status == SUCCESS:
                yield outcome.key, outcome.members(extension)
            else:
                damages.append(_damage(self.tar.name, outcome))

    def _stats(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """img2dataset's, `status_dict` by reason. Times are of this run."""
        statuses = Counter(row["status"] for row in rows)
        return {
            "count": len(rows),
            "successes": statuses[SUCCESS],
            "failed_to_download": statuses[NOT_FETCHED],
            "failed_to_resize": statuses[NOT_RESIZED],
            "duration": round(time.time() - self.started, 3),
            "start_time": datetime.fromtimestamp(self.started, UTC).isoformat(timespec="seconds"),
            "end_time": datetime.now(UTC).isoformat(timespec="seconds"),
            "status_dict": dict(Counter(row["reason"] or SUCCESS for row in rows).most_common()),
        }


def _damage(tar: str, outcome: Outcome) -> Damage:
    url, detail = outcome.metadata["url"], outcome.detail
    return Damage(tar, outcome.key, -1, outcome.reason, url if detail in ("", url) else f"{url}: {detail}")


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    names = dict.fromkeys([*TYPES, *(name for row in rows for name in row)])
    columns = {name: _column([row.get(name) for row in rows], TYPES.get(name)) for name in names}
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, compression="zstd")
    return buffer.getvalue()


def _column(values: list[Any], kind: pa.DataType | None) -> pa.Array:
    """Of values of several kinds, which a JSONL table may mix, JSON."""
    try:
        return pa.array(values, kind)
    except (pa.ArrowException, OverflowError):
        return pa.array([None if value is None else json.dumps(value) for value in values], pa.string())
