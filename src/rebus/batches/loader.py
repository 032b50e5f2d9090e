"""Batches ahead of the model: threads build the next steps while this one trains.

Threads, not processes: decoding, resizing and tokenising leave the interpreter lock, and nothing has to be copied,
pickled or killed. Order is fixed by arithmetic (batches.order), so the number of threads changes no batch.
"""

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from itertools import islice

from rebus.batches.batch import Batch
from rebus.batches.feed import Feed, build_batch
from rebus.batches.order import step_packs
from rebus.errors import ConfigError
from rebus.mesh import Mesh


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
) -> Iterator[tuple[int, list[Batch]]]:
    """Yields (step, this rank's micro-batches) for the given steps, in order.

    packs_per_step: over all ranks. packs_per_batch: packs laid into one micro-batch. prefetch: steps built ahead.
    Ending the iteration, by exception or Ctrl-C too, stops the threads: they finish the document they are at.

    Raises: ConfigError where the ranks would get unequal numbers of micro-batches.
    """
    check_division(packs_per_step, packs_per_batch, mesh)

    def packs_of(step: int) -> tuple[int, ...]:
        return step_packs(
            step, num_packs=feed.num_packs, packs_per_step=packs_per_step, seed=seed, rank=mesh.rank, world=mesh.world
        )

    stop = threading.Event()
    pool = ThreadPoolExecutor(max(1, num_workers), thread_name_prefix="rebus-batches")
    remaining, waiting = iter(steps), deque[tuple[int, list[Future[Batch]]]]()
    try:
        while True:
            for step in islice(remaining, max(1, prefetch) + 1 - len(waiting)):
                groups = _groups(packs_of(step), packs_per_batch)
                waiting.append((step, [pool.submit(_build, feed, group, stop) for group in groups]))
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


def _build(feed: Feed, packs: tuple[int, ...], stop: threading.Event) -> Batch:
    if stop.is_set():
        raise CancelledError
    return build_batch(feed, packs)


def _groups(packs: tuple[int, ...], size: int) -> list[tuple[int, ...]]:
    return [packs[start : start + size] for start in range(0, len(packs), size)]
