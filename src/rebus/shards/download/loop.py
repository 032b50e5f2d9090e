"""The event loop: rows of several shards are asked for side by side, so that nobody waits for a shard's last, slowest
host; pictures are resized in threads meanwhile."""

import asyncio
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from rebus.engine import default_workers
from rebus.log import progress_bar
from rebus.shards.damage import DamagedSampleError
from rebus.shards.download.config import Download
from rebus.shards.download.fetch import Fetcher
from rebus.shards.download.outcome import SUCCESS, Outcome, failure, picture_outcome, refuse_row
from rebus.shards.download.politeness import backoff_seconds
from rebus.shards.download.reasons import is_retryable
from rebus.shards.download.shard import OpenShard, is_done
from rebus.shards.sources.urls import Slice, UrlRow, read_rows

ROWS_AHEAD = 8  # rows begun for each request that may run: those that wait for their host keep no others waiting
NUM_OPEN_SHARDS = 16
CHUNK_ROWS = 256
TICK_SECONDS = 0.5


@dataclass
class Meter:
    """What has come so far in this run."""

    started: float
    num_rows: int = 0
    num_good: int = 0

    def note(self, num_bytes: int) -> str:
        seconds = max(time.monotonic() - self.started, 1e-9)
        share = self.num_good / max(self.num_rows, 1)
        return f"{self.num_good / seconds:,.0f} images/s, {share:.1%} came, {num_bytes / 1e6 / seconds:,.1f} MB/s"


class Downloader:
    """Downloads slices into `out`. One a process."""

    def __init__(self, options: Download, rows_per_shard: int, out: Path):
        self.options, self.rows_per_shard, self.out = options, rows_per_shard, out
        self.fetcher = Fetcher(options)
        self.threads = ThreadPoolExecutor(default_workers(), thread_name_prefix="resize")
        self.meter = Meter(time.monotonic())
        self._rows = asyncio.Semaphore(ROWS_AHEAD * options.concurrency)
        self._shards = asyncio.Semaphore(NUM_OPEN_SHARDS)
        self._open: set[OpenShard] = set()

    async def run(self, slices: Iterable[tuple[Slice, Path]], total: int | None, quiet: bool) -> None:
        """Every shard that is not there yet. total: rows of all, for the bar."""
        ticker = asyncio.create_task(self._show(total, quiet))
        try:
            async with asyncio.TaskGroup() as tasks:
                waiting = iter(slices)
                while (found := await asyncio.to_thread(next, waiting, None)) is not None:
                    await self._feed(*found, tasks)
        finally:
            ticker.cancel()
            await self.fetcher.close()
            self.threads.shutdown(cancel_futures=True)
            for shard in self._open:
                shard.journal.close()

    async def _feed(self, one: Slice, tar: Path, tasks: asyncio.TaskGroup) -> None:
        if is_done(tar):
            self.meter.num_rows += one.piece.num_rows
            return
        await self._shards.acquire()
        shard = await asyncio.to_thread(OpenShard, tar)
        self._open.add(shard)
        rows = read_rows(one, self.options, self.rows_per_shard)
        while chunk := await asyncio.to_thread(_take, rows):
            for row in chunk:
                if row.number in shard.journal:
                    self.meter.num_rows += 1
                    continue
                await self._rows.acquire()
                shard.num_open += 1
                tasks.create_task(self._one(shard, row))
        shard.is_fed = True
        if not shard.num_open:
            tasks.create_task(self._finish(shard))

    async def _one(self, shard: OpenShard, row: UrlRow) -> None:
        outcome = await self._outcome(row, shard.tar.name)
        shard.journal.add(outcome)
        self.meter.num_rows += 1
        self.meter.num_good += outcome.status == SUCCESS
        self._rows.release()
        shard.num_open -= 1
        if shard.is_complete:
            await self._finish(shard)

    async def _finish(self, shard: OpenShard) -> None:
        await asyncio.to_thread(shard.finish, self.options)
        self._open.remove(shard)
        self._shards.release()

    async def _outcome(self, row: UrlRow, shard: str) -> Outcome:
        try:
            refuse_row(row, shard)
        except DamagedSampleError as error:
            return failure(row, error)
        attempt = 0
        while True:
            try:
                return await self._attempt(row, shard)
            except DamagedSampleError as error:
                if attempt >= self.options.retries or not is_retryable(error.reason):
                    return failure(row, error)
            await asyncio.sleep(backoff_seconds(attempt, self.options.backoff))
            attempt += 1

    async def _attempt(self, row: UrlRow, shard: str) -> Outcome:
        async with self.fetcher.fetched(row.url) as body:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self.threads, picture_outcome, row, body, self.options, shard)

    async def _show(self, total: int | None, quiet: bool) -> None:
        with progress_bar() as bar:
            task = bar.add_task("download", total=total, note="", visible=not quiet)
            while True:
                bar.update(task, completed=self.meter.num_rows, note=self.meter.note(self.fetcher.num_bytes))
                await asyncio.sleep(TICK_SECONDS)


def _take(rows: Iterator[UrlRow]) -> list[UrlRow]:
    return list(islice(rows, CHUNK_ROWS))


def download_slices(
    slices: Iterable[tuple[Slice, Path]],
    options: Download,
    rows_per_shard: int,
    out: Path,
    total: int | None = None,
    quiet: bool = False,
) -> None:
    """Runs an event loop until every slice has its shard. Raises: what went wrong first, of many tasks at a time."""

    async def run() -> None:
        await Downloader(options, rows_per_shard, out).run(slices, total, quiet)

    try:
        asyncio.run(run())
    except BaseExceptionGroup as group:
        raise _first(group) from group


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
