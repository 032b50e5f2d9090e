"""Told to stop: a signal sets a flag, the loop finishes its step and saves, and the run ends with a status that says
why. Slurm sends a signal ahead of its limit (`--signal=TERM@180`), torchrun SIGTERM or SIGINT 30 s before SIGKILL: a
state that takes longer to write is lost, and the one before it stands. torchrun itself ends by SIGUSR1."""

import os
import signal
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Any

from rebus.errors import Stopped
from rebus.log import say
from rebus.mesh import Mesh

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

SAME_SECONDS = 1.0
"""Two SIGINT within this are one Ctrl-C: the terminal sends it to every process, and launchers forward theirs."""


class StopSignal:
    """While entered, SIGNALS ask the run to stop in place of ending it; a second Ctrl-C ends the process at once.

    Python runs signal handlers between two lines of the main thread: never while it waits inside a collective. What
    must be at once is therefore done by a thread that reads the numbers which the interpreter writes down (wakeup fd).
    Outside the main thread, where no handler can be set, it hears nothing.
    """

    def __init__(self, mesh: Mesh = Mesh()) -> None:  # noqa: B008 - frozen
        self._mesh = mesh
        self._heard: signal.Signals | None = None
        self._handlers: dict[signal.Signals, Any] = {}

    @property
    def is_set(self) -> bool:
        """This process was told to stop."""
        return self._heard is not None

    def stopped(self, done: int, num_steps: int) -> Stopped:
        """What to raise once the state after `done` steps is on disk, on every rank: also those that were told by
        another. Rank 0's says how to go on, the others' nothing."""
        heard = self._heard or signal.SIGTERM
        by = {signal.SIGINT: " by Ctrl-C"}.get(heard, f" by {heard.name}") if self._heard else ""
        message = (
            f"stopped{by} after step {done:,} of {num_steps:,}; its state is saved. Run the same command again: it "
            "goes on from there."
        )
        return Stopped(message if self._mesh.is_main else "", status=128 + heard)

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            self._readable, self._writable = os.pipe()
            os.set_blocking(self._writable, False)
            self._before = signal.set_wakeup_fd(self._writable, warn_on_full_buffer=False)
            self._handlers = {number: signal.signal(number, self._note) for number in SIGNALS}
            self._reader = threading.Thread(target=self._read, name="rebus-stop", daemon=True)
            self._reader.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if not self._handlers:
            return
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}
        signal.set_wakeup_fd(self._before)
        os.close(self._writable)  # the thread reads an end and leaves
        self._reader.join()
        os.close(self._readable)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._heard = self._heard or signal.Signals(number)

    def _read(self) -> None:
        interrupted: float | None = None
        is_told = False
        while numbers := os.read(self._readable, 64):
            for number in numbers:
                if number not in SIGNALS:
                    continue
                if number == signal.SIGINT:
                    interrupted = interrupted or time.monotonic()
                    if time.monotonic() - interrupted > SAME_SECONDS:
                        _end_at_once()
                if not is_told and self._mesh.is_main:
                    say("stopping after this step, its state saved first; Ctrl-C again ends at once.")
                is_told = True


def _end_at_once() -> None:
    """Without a word to the main thread, which may be waiting for another process."""
    say("stopped at once. Run the same command again: it goes on from the last saved state.")
    sys.stdout.flush()
    os._exit(128 + signal.SIGINT)
