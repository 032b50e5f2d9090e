"""Work on a Ray cluster: actors that keep their models, pieces given out again where a worker or a node is lost."""

import logging
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rebus.errors import ConfigError, DataError
from rebus.log import say

MAX_TRIES = 4
"""Times that a piece of work is given to a worker before it is given up: what kills four kills the fifth."""

PATIENCE = 30.0
"""Seconds without room for a worker after which the person who waits is told."""

Work = Callable[[list[Any]], list[Any]]


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster. address: `auto` for one that runs here, `local` to start one, or host:port. num_workers: None
    takes as many as the cluster has CPUs (or GPUs, where a worker wants some). cpus, gpus: that each of them wants."""

    address: str
    num_workers: int | None = None
    cpus: float = 1
    gpus: float = 0


def cut_evenly(items: Sequence[Any], num_workers: int, longest: int) -> list[list[Any]]:
    """Pieces of at most `longest` items, and of no more than leaves each worker four to do: none waits for another."""
    length = max(1, min(longest, len(items) // (4 * num_workers)))
    return [list(items[start : start + length]) for start in range(0, len(items), length)]


def on_cluster(cluster: Cluster, work: Work, items: Sequence[Any], longest: int) -> Iterator[Any]:
    """The results of `work` over all items, in order, given out in pieces of at most `longest`. What it raises is
    raised here.

    work: picklable, and restartable by itself: a piece is given out again, up to MAX_TRIES times, where the worker
    that had it was lost. Raises: ConfigError where no cluster answers or none of its nodes could hold a worker;
    DataError for a piece that no worker survives.
    """
    _connect(cluster)
    num_workers = _num_workers(cluster)
    crew = _Crew(cluster, work, cut_evenly(items, num_workers, longest), num_workers)
    try:
        yield from crew.results()
    finally:
        crew.dismiss()


def disconnect() -> None:
    """Leaves the cluster; one that was started for this process alone ends."""
    if "ray" in sys.modules:
        import ray

        ray.shutdown()


@dataclass
class _Crew:
    """Actors and what each is at. A piece goes only to one that has answered: where nodes are gone or full, an actor
    waits for room, and the others do its work."""

    cluster: Cluster
    work: Work
    pieces: list[list[Any]]
    num_workers: int
    starting: dict[Any, Any] = field(default_factory=dict)  # its first answer -> actor
    idle: list[Any] = field(default_factory=list)
    underway: dict[Any, tuple[Any, int]] = field(default_factory=dict)  # result to come -> actor, number of the piece

    def __post_init__(self) -> None:
        self.left = deque(range(len(self.pieces)))
        self.tries = [0] * len(self.pieces)
        for _ in range(min(self.num_workers, len(self.pieces))):
            self._hire()

    def results(self) -> Iterator[Any]:
        done: dict[int, list[Any]] = {}
        following = 0
        while following < len(self.pieces):
            while self.idle and self.left:
                self._give(self.idle.pop(), self.left.popleft())
            self._wait(done)
            while following in done:
                yield from done.pop(following)
                following += 1

    def dismiss(self) -> None:
        import ray

        for actor in [*self.starting.values(), *self.idle, *(actor for actor, _ in self.underway.values())]:
            ray.kill(actor)

    def _hire(self) -> None:
        import ray

        kind: Any = ray.remote(num_cpus=self.cluster.cpus, num_gpus=self.cluster.gpus)(_Worker)
        actor = kind.remote(os.getcwd())
        self.starting[actor.answer.remote()] = actor

    def _give(self, actor: Any, number: int) -> None:
        self.tries[number] += 1
        self.underway[actor.do.remote(self.work, self.pieces[number])] = (actor, number)

    def _wait(self, done: dict[int, list[Any]]) -> None:
        """Until one actor has answered, finished or died."""
        import ray
        from ray.exceptions import RayActorError, RayTaskError

        awaited = [*self.underway, *self.starting]
        ready, _ = ray.wait(awaited, timeout=None if self.underway else PATIENCE)
        if not ready:
            say("waiting for room on the Ray cluster (`ray status` says what holds it)")
            return
        [answer] = ready
        actor, number = self.underway.pop(answer, None) or (self.starting.pop(answer), None)
        try:
            result = ray.get(answer)
        except RayTaskError as error:
            self.idle.append(actor)
            raise error.cause from None
        except RayActorError as error:
            self._replace(actor, number, error)
            return
        self.idle.append(actor)
        if number is not None:
            done[number] = result

    def _replace(self, actor: Any, number: int | None, error: Exception) -> None:
        if number is None:
            raise ConfigError(f"a worker did not start on the Ray cluster: {error}") from error
        names = ", ".join(map(str, self.pieces[number][:3]))
        if self.tries[number] >= MAX_TRIES:
            raise DataError(
                f"{self.tries[number]} workers died at {names}: {error}. Too little memory is the usual cause; run "
                "again with more of it a worker (--ray-cpus), or fewer workers. What was finished is kept."
            )
        say(f"a worker died at {names}; it is done again (try {self.tries[number] + 1} of {MAX_TRIES})")
        self.left.appendleft(number)
        self._hire()


def _connect(cluster: Cluster) -> None:
    try:
        import ray
    except ImportError as error:
        raise ConfigError("Ray is not installed here: pip install 'rebus[ray]'.") from error

    if ray.is_initialized():
        return
    address = None if cluster.address == "local" else cluster.address
    own: dict[str, Any] = {"include_dashboard": False} if address is None else {}
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, **own)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"no Ray cluster answers at '{cluster.address}': {error}. Start one with `ray start --head`, give its "
            "host:port, or `local` to start one for this run."
        ) from error


def _num_workers(cluster: Cluster) -> int:
    """As many as some node has room for, summed over the nodes."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    room = sum(_room(cluster, node) for node in nodes)
    if not room:
        largest = max((f"{node.get('CPU', 0):g} CPUs, {node.get('GPU', 0):g} GPUs" for node in nodes), default="none")
        raise ConfigError(
            f"no node of the Ray cluster has room for a worker of {cluster.cpus:g} CPUs and {cluster.gpus:g} GPUs "
            f"(nodes: {len(nodes)}; such as {largest}). Ask for less with --ray-cpus and --ray-gpus."
        )
    return cluster.num_workers or room


def _room(cluster: Cluster, node: dict[str, float]) -> int:
    fit = [int(node.get(name, 0) / each) for name, each in (("CPU", cluster.cpus), ("GPU", cluster.gpus)) if each]
    return min(fit, default=1)


class _Worker:
    """An actor of a cluster. It works where the command was given, so that paths mean the same."""

    def __init__(self, folder: str) -> None:
        if not os.path.isdir(folder):
            raise ConfigError(f"{folder} is not on every node. Run from a folder that all nodes share.")
        os.chdir(folder)

    def answer(self) -> None:
        """Says that it is there."""

    def do(self, work: Work, piece: list[Any]) -> list[Any]:
        return work(piece)
