"""Batches ahead of the model: threads build the next steps while this one trains.

Threads, not processes: decoding, resizing and tokenising leave the interpreter lock, and nothing has to be copied,
pickled or killed. What holds the lock (tar headers, JSON, templates) is measured by benchmarks/loader.py.
Order is fixed by arithmetic (batches.order), so the number of threads changes no batch.
"""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from itertools import islice

from rebus.batches.batch import Batch
from rebus.batches.feed import Feed, build_batch
from rebus.batches.order import step_packs
from rebus.errors import ConfigError
from rebus.mesh import Mesh

Packs = tuple[int, ...]


def iterate_batches(
    feed: Feed,
    steps: Iterable[int],
    *,
    packs_per_step: int,
    seed: int,
    mesh: Mesh = Mesh(),  # noqa: B008 - frozen
    packs_per_batch: int = 1,
    num_workers: int = 2,
    prefetch: int = 2,
    pin: bool = False,
) -> Generator[tuple[int, list[Batch]], None, None]:
    """Yields (step, this rank's micro-batches) for the given steps, in order.

    packs_per_step: over all ranks. packs_per_batch: packs laid into one micro-batch. num_workers: threads that build;
    0 builds in the caller's own, when it asks. prefetch: steps built ahead of the one asked for. pin: puts batches
    where a GPU copies them from while it computes. An error in a thread is raised at the step that it belongs to.
    Ending the iteration, by exception or Ctrl-C too, stops the threads: they finish the batch they are at.

    Raises: ConfigError where the ranks would get unequal numbers of micro-batches.
    """
    check_division(packs_per_step, packs_per_batch, mesh)
    blocks, costs = feed.plan.blocks, feed.plan.costs

    def groups_of(step: int) -> list[Packs]:
        packs = step_packs(
            step,
            num_packs=feed.num_packs,
            packs_per_step=packs_per_step,
            seed=seed,
            rank=mesh.rank,
            world=mesh.world,
            blocks=blocks,
            costs=costs,
        )
        return [packs[start : start + packs_per_batch] for start in range(0, len(packs), packs_per_batch)]

    def build(packs: Packs) -> Batch:
        batch = build_batch(feed, packs)
        return batch.pin() if pin else batch

    if num_workers:
        yield from _ahead(groups_of, build, steps, num_workers, prefetch)
    else:
        for step in steps:
            yield step, [build(packs) for packs in groups_of(step)]


def _ahead(
    groups_of: Callable[[int], list[Packs]],
    build: Callable[[Packs], Batch],
    steps: Iterable[int],
    num_workers: int,
    prefetch: int,
) -> Iterator[tuple[int, list[Batch]]]:
    """Builds in threads, at most `prefetch` steps beyond the one that is yielded next."""
    stop = threading.Event()
    pool = ThreadPoolExecutor(num_workers, thread_name_prefix="rebus-batches")

    def build_unless_stopped(packs: Packs) -> Batch:
        if stop.is_set():
            raise CancelledError
        return build(packs)

    remaining, waiting = iter(steps), deque[tuple[int, list[Future[Batch]]]]()
    try:
        while True:
            for step in islice(remaining, max(0, prefetch) + 1 - len(waiting)):
                waiting.append((step, [pool.submit(build_unless_stopped, packs) for packs in groups_of(step)]))
            if not waiting:
                return
            step, futures = waiting.popleft()
            yield step, [future.result() for future in futures]
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


def check_division(packs_per_step: int, packs_per_batch: int, mesh: Mesh) -> None:
    """Every rank must have as many micro-batches as any other, or the ranks would wait for one another forever."""
    share = mesh.world * packs_per_batch
    if packs_per_step % share:
        raise ConfigError(
            f"packs_per_step = {packs_per_step} does not divide among {mesh.world} ranks with {packs_per_batch} packs "
            f"a micro-batch. Use a multiple of {share}, such as {max(1, round(packs_per_step / share)) * share}."
        )
