"""The one place that runs a function over shards. Each output is written whole or not at all, so a stage that was
killed goes on where it stopped: shards whose output exists are skipped.
"""

import concurrent.futures
import multiprocessing
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from rebus.errors import DataError
from rebus.log import progress_bar

Result = TypeVar("Result")


def list_shards(folder: Path) -> list[Path]:
    """The .tar files of a folder in name order. Raises DataError where there is none."""
    if not folder.is_dir():
        raise DataError(f"no folder at {folder}. `rebus shards --help` shows how to make shards.")
    shards = sorted(folder.glob("*.tar"))
    if not shards:
        raise DataError(f"{folder} holds no .tar shard. `rebus shards --help` shows how to make shards.")
    return shards


def map_shards(
    function: Callable[[Path], Result], shards: Sequence[Path], *, description: str, num_workers: int = 1
) -> list[Result]:
    """Applies `function` to every shard and returns the results in the shards' order.

    num_workers: processes on this machine; 1 stays in this process, which a function with a model on board wants.
    The function must be picklable for more than one worker, and restartable by itself.
    """
    with progress_bar() as bar:
        task = bar.add_task(description, total=len(shards), note="")
        if num_workers <= 1 or len(shards) <= 1:
            results = []
            for shard in shards:
                results.append(function(shard))
                bar.advance(task)
            return results
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(min(num_workers, len(shards)), mp_context=context) as pool:
            futures = [pool.submit(function, shard) for shard in shards]
            for _ in concurrent.futures.as_completed(futures):
                bar.advance(task)
            return [future.result() for future in futures]


def default_workers() -> int:
    """Processes for work that a core does alone: one a core, at most 16."""
    return min(len(os.sched_getaffinity(0)), 16)
