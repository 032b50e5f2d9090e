"""The one place that runs a function over shards: in this process, in several of this machine, or on a Ray cluster.

Each output is written whole or not at all, so a stage that was killed goes on where it stopped: shards whose output
exists are skipped. That is also why a lost worker costs no more than the shards that it was at.
"""

import concurrent.futures
import functools
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from rebus.cluster import Cluster, cut_evenly, disconnect, on_cluster
from rebus.errors import DataError
from rebus.log import progress_bar

Item = TypeVar("Item")
Result = TypeVar("Result")
Stream = Callable[[Iterable[Item]], Iterable[Result]]

_CLUSTERS: list[Cluster] = []


@contextmanager
def on_ray(cluster: Cluster | None) -> Iterator[None]:
    """Sends the work of every stage inside to a cluster; None changes nothing."""
    if cluster is None:
        yield
        return
    _CLUSTERS.append(cluster)
    try:
        yield
    finally:
        _CLUSTERS.pop()
        if not _CLUSTERS:
            disconnect()


def list_shards(folder: Path) -> list[Path]:
    """The shards of a folder in name order: tars, and `.link` files that say where a shard's data lies.

    Raises: DataError where there is none.
    """
    if not folder.is_dir():
        raise DataError(f"no folder at {folder}. `rebus shards --help` shows how to make shards.")
    shards = sorted([*folder.glob("*.tar"), *folder.glob("*.link")])
    if not shards:
        raise DataError(f"{folder} holds no shard. `rebus shards --help` shows how to make shards.")
    return shards


def map_shards(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    description: str,
    num_workers: int = 1,
    total: int | None = None,
) -> list[Result]:
    """Applies `function` to every item (a shard, a piece of a table) and returns the results in the items' order.

    items: may be an iterator that finds them as it goes; it is read no more than two items a worker ahead.
    num_workers: processes on this machine; 1 stays in this process.
    The function must be picklable for more than one worker or a cluster, and restartable by itself.
    """
    each = functools.partial(_each, function)
    return stream_shards(each, items, description=description, num_workers=num_workers, total=total)


def stream_shards(
    stream: Stream,
    items: Iterable[Item],
    *,
    description: str,
    num_workers: int = 1,
    total: int | None = None,
    stretch: int = 1,
    note: Callable[[list[Result]], str] | None = None,
) -> list[Result]:
    """As map_shards, for a function that takes several items and yields a result for each: it may read ahead.

    stretch: the most items that a worker among several is given at once. note: what the progress bar says of the
    results so far.
    """
    if isinstance(items, list | tuple):
        total = len(items)
        num_workers = max(1, min(num_workers, total))
    with progress_bar() as bar:
        task = bar.add_task(description, total=total, note="")
        results: list[Any] = []
        for result in _results(stream, items, num_workers, stretch):
            results.append(result)
            bar.update(task, advance=1, note=note(results) if note else "")
        return results


def _each(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    return map(function, items)


def _results(stream: Stream, items: Iterable[Any], num_workers: int, stretch: int) -> Iterator[Any]:
    if _CLUSTERS:
        return on_cluster(_CLUSTERS[-1], functools.partial(_work, stream), list(items), stretch)
    if num_workers <= 1:
        return iter(stream(items))
    if isinstance(items, list | tuple):
        return _spread(stream, iter(cut_evenly(items, num_workers, stretch)), num_workers)
    return _spread(stream, ([item] for item in items), num_workers)


def _work(stream: Stream, items: list[Any]) -> list[Any]:
    return list(stream(items))


def _spread(stream: Stream, stretches: Iterator[list[Any]], num_workers: int) -> Iterator[Any]:
    """Results in order, from as many processes."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(num_workers, mp_context=context) as pool:
        waiting = [pool.submit(_work, stream, part) for part in islice(stretches, 3 * num_workers)]
        while waiting:
            yield from waiting.pop(0).result()
            waiting += [pool.submit(_work, stream, part) for part in islice(stretches, 1)]


def default_workers() -> int:
    """Processes for work that a core does alone: one a core, at most 16."""
    return min(len(os.sched_getaffinity(0)), 16)
