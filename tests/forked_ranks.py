"""Real processes that train, forked from one that has imported everything already: a start costs a tenth of a second
in place of five. They are their own processes in every other way: killed with -9, they are gone."""

import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        *("rebus.training.loop", "rebus.checkpoints.load", "rebus.model.native", "torch.distributed.fsdp"),
        *("transformers.models.llama.modeling_llama", "transformers.models.auto.modeling_auto", "peft", "forked_ranks"),
    ]
)
DEADLINE_SECONDS = 300


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def places(world: int) -> list[dict[str, str]]:
    """What torchrun would tell each rank; by itself, since torchrun's ranks outlive it when it is killed."""
    if world == 1:
        return [{}]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": str(world)}
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]


class Ranks:
    """`world` processes that train the recipes one after the other, as `rebus train` does; what they say is in `log`.

    before: called in each process first, with the process's rank.
    """

    def __init__(self, recipes: Sequence[Path], world: int, log: Path, before: Callable[[int], None] | None = None):
        self.log = log
        self.processes = [
            CONTEXT.Process(target=_train, args=(list(recipes), place, log, before)) for place in places(world)
        ]
        for process in self.processes:
            process.start()

    @property
    def are_alive(self) -> bool:
        return all(process.is_alive() for process in self.processes)

    def send(self, number: int) -> None:
        for process in self.processes:
            if process.is_alive():
                assert process.pid is not None
                os.kill(process.pid, number)

    def kill(self) -> None:
        """All at once, with -9, as where a machine fails."""
        self.send(signal.SIGKILL)
        self.wait()

    def wait(self) -> list[int | None]:
        """Exit statuses, once all have ended."""
        end = time.monotonic() + DEADLINE_SECONDS
        for process in self.processes:
            process.join(max(0.0, end - time.monotonic()))
            if process.exitcode is None:
                self.send(signal.SIGKILL)
                raise AssertionError(f"never ended:\n{self.said}")
        return [process.exitcode for process in self.processes]

    @property
    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""


def train(recipes: Sequence[Path], world: int = 1) -> None:
    """Trains the recipes, all in the same processes. Raises: AssertionError with what they said where one fails."""
    ranks = Ranks(recipes, world, recipes[0].with_suffix(f".{world}.log"))
    assert ranks.wait() == [0] * world, ranks.said


def _train(recipes: list[Path], place: dict[str, str], log: Path, before: Callable[[int], None] | None) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the server that forked us is deaf to Ctrl-C
    os.environ.update(place)
    import torch

    from rebus.cli import main

    torch.set_num_threads(1)
    if before is not None:
        before(int(place.get("RANK", "0")))
    if len(recipes) > 1 and place:  # one group for all of them
        torch.distributed.init_process_group("gloo")
        torch.distributed.destroy_process_group = lambda: None
    try:
        for recipe in recipes:
            _call(main, recipe)
    except SystemExit as ended:
        sys.stderr.flush()
        os._exit(ended.code if isinstance(ended.code, int) else 1)


def _call(main: Callable[[list[str]], None], recipe: Path) -> None:
    try:
        main(["--debug", "train", str(recipe)])
    except SystemExit as ended:
        if ended.code:
            raise
    except BaseException:
        traceback.print_exc()
        raise SystemExit(1) from None
