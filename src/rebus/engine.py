"""The one place that runs a function over shards. Each output is written whole or not at all, so a stage that was
killed goes on where it stopped: shards whose output exists are skipped.
"""

import concurrent.futures
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TypeVar

from rebus.errors import DataError
from rebus.log import progress_bar

Item = TypeVar("Item")
Result = TypeVar("Result")


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
    num_workers: processes on this machine; 1 stays in this process, which a function with a model on board wants.
    The function must be picklable for more than one worker, and restartable by itself.
    """
    if isinstance(items, list | tuple):
        total = len(items)
        num_workers = min(num_workers, total)
    with progress_bar() as bar:
        task = bar.add_task(description, total=total, note="")
        results = []
        for result in map(function, items) if num_workers <= 1 else _spread(function, iter(items), num_workers):
            results.append(result)
            bar.advance(task)
        return results


def _spread(function: Callable[[Item], Result], items: Iterator[Item], num_workers: int) -> Iterator[Result]:
    """Results in order, from as many processes."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(num_workers, mp_context=context) as pool:
        waiting = [pool.submit(function, item) for item in islice(items, 3 * num_workers)]
        while waiting:
            yield waiting.pop(0).result()
            waiting += [pool.submit(function, item) for item in islice(items, 1)]


def default_workers() -> int:
    """Processes for work that a core does alone: one a core, at most 16."""
    return min(len(os.sched_getaffinity(0)), 16)
