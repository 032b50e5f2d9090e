"""The one place that runs a function over shards: in this process, in several of this machine, or on a Ray cluster.

Each output is written whole or not at all, so a stage that was killed goes on where it stopped: shards whose output
exists are skipped. That is also why a lost worker costs no more than the shards that it was at.
"""

import concurrent.futures
import functools
import logging
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from rebus.errors import ConfigError, DataError
from rebus.log import progress_bar, say

Item = TypeVar("Item")
Result = TypeVar("Result")
Stream = Callable[[Iterable[Item]], Iterable[Result]]

MAX_TRIES = 4
"""Times that a piece of work is given to a worker before a cluster gives it up: what kills four kills the fifth."""


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster. address: `auto` for one that runs here, `local` to start one, or host:port. num_workers: None
    takes as many as the cluster has CPUs (or GPUs, where a worker wants some). cpus, gpus: that each of them wants."""

    address: str
    num_workers: int | None = None
    cpus: float = 1
    gpus: float = 0


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

    stretch: items that a worker among several is given at once. note: what the progress bar says of the results so far.
    """
    if isinstance(items, list | tuple):
        total = len(items)
        num_workers = max(1, min(num_workers, -(-total // stretch)))
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
        return _on_cluster(_CLUSTERS[-1], stream, list(_stretches(iter(items), stretch)))
    if num_workers <= 1:
        return iter(stream(items))
    return _spread(stream, _stretches(iter(items), stretch), num_workers)


def _stretches(items: Iterator[Any], length: int) -> Iterator[list[Any]]:
    while part := list(islice(items, length)):
        yield part


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


def _on_cluster(cluster: Cluster, stream: Stream, stretches: list[list[Any]]) -> Iterator[Any]:
    """Results in order, from actors that keep their models. One that dies is started anew, elsewhere if need be, and
    its stretch given out again; what the function itself raises is raised here."""
    import ray
    from ray.exceptions import RayActorError, RayTaskError

    _connect(cluster)
    kind: Any = ray.remote(num_cpus=cluster.cpus, num_gpus=cluster.gpus, max_restarts=-1)(_Worker)
    actors: list[Any] = [kind.remote(os.getcwd()) for _ in range(_num_actors(cluster, len(stretches)))]
    left, tries = list(enumerate(stretches)), [0] * len(stretches)
    left.reverse()
    underway: dict[Any, tuple[Any, int]] = {}
    done: dict[int, list[Any]] = {}
    following = 0
    try:
        while left or underway:
            busy = {actor for actor, _ in underway.values()}
            for actor in [actor for actor in actors if actor not in busy][: len(left)]:
                number, part = left.pop()
                tries[number] += 1
                underway[actor.work.remote(stream, part)] = (actor, number)
            [finished], _ = ray.wait(list(underway))
            _, number = underway.pop(finished)
            try:
                done[number] = ray.get(finished)
            except RayTaskError as error:
                raise error.cause from None
            except RayActorError as error:
                _give_out_again(number, stretches, tries, error)
                left.append((number, stretches[number]))
            while following in done:
                yield from done.pop(following)
                following += 1
    finally:
        for actor in actors:
            ray.kill(actor)


def _connect(cluster: Cluster) -> None:
    import ray

    if ray.is_initialized():
        return
    address = None if cluster.address == "local" else cluster.address
    try:
        own: dict[str, Any] = {"include_dashboard": False} if address is None else {}
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, **own)
    except (ConnectionError, ValueError) as error:
        raise ConfigError(
            f"no Ray cluster answers at '{cluster.address}': {error}. Start one with `ray start --head`, give its "
            "host:port, or `local` to start one for this run."
        ) from error


def _num_actors(cluster: Cluster, num_stretches: int) -> int:
    import ray

    have = ray.cluster_resources()
    fit = [int(have.get(name, 0) / each) for name, each in (("CPU", cluster.cpus), ("GPU", cluster.gpus)) if each]
    if not fit or min(fit) < 1:
        found = ", ".join(f"{have.get(name, 0):g} {name}s" for name in ("CPU", "GPU"))
        raise ConfigError(
            f"the Ray cluster has {found}; a worker wants {cluster.cpus:g} CPUs and {cluster.gpus:g} GPUs. "
            "Ask for less with --ray-cpus and --ray-gpus."
        )
    return min(cluster.num_workers or min(fit), min(fit), num_stretches)


def _give_out_again(number: int, stretches: list[list[Any]], tries: list[int], error: Exception) -> None:
    names = ", ".join(map(str, stretches[number][:3]))
    if tries[number] >= MAX_TRIES:
        raise DataError(
            f"{tries[number]} workers died at {names}: {error}. Too little memory is the usual cause; run again "
            "with more of it a worker, or fewer workers. What was finished is kept."
        )
    say(f"a worker died at {names}; it is done again (try {tries[number] + 1} of {MAX_TRIES})")


class _Worker:
    """An actor of a cluster. It works where the command was given, so that paths mean the same."""

    def __init__(self, folder: str) -> None:
        if not os.path.isdir(folder):
            raise ConfigError(f"{folder} is not on every node. Run from a folder that all nodes share.")
        os.chdir(folder)

    def work(self, stream: Stream, items: list[Any]) -> list[Any]:
        return _work(stream, items)


def default_workers() -> int:
    """Processes for work that a core does alone: one a core, at most 16."""
    return min(len(os.sched_getaffinity(0)), 16)
