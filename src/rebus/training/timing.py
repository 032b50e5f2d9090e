"""Where a step's time goes. On a GPU kernels run behind the program: its own clock times them, without a wait."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch

PHASES = ("wait", "transfer", "forward", "backward", "communication", "optimizer", "saving", "other")
"""wait: for data. transfer: host to device. communication: the step's own collectives; what FSDP gathers and reduces
while it computes is part of forward and backward.
saving: of the state before this step, as far as the loop waits for it."""


class Stopwatch:
    """Splits the time between two laps into PHASES. `now` is the phase that the program is in, for the watchdog."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._on_gpu = torch.device(device).type == "cuda"
        self._seconds: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._started = time.perf_counter()
        self.now = "start"

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Counts what is inside as `name`; phases do not nest."""
        self.now = name
        if self._on_gpu and name != "wait":
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            yield
            last.record()
            self._events.append((name, first, last))
        else:
            started = time.perf_counter()
            yield
            self._seconds[name] += time.perf_counter() - started
        self.now = "other"

    def lap(self) -> dict[str, float]:
        """Seconds of each phase since the last lap; `other` is the rest. Waits for the GPU's last event."""
        if self._events:
            self._events[-1][2].synchronize()
        for name, first, last in self._events:
            self._seconds[name] += first.elapsed_time(last) / 1e3
        ended = time.perf_counter()
        spent = {name: self._seconds.get(name, 0.0) for name in PHASES}
        spent["other"] = max(0.0, ended - self._started - sum(spent.values()))
        self._seconds, self._events, self._started = defaultdict(float), [], ended
        return spent
