"""`rebus eval` on checkpoints saved at set steps, as processes of their own beside the run: training and evaluation
meet at a folder. One at a time, the others wait; none that fails stops the run."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from rebus.fingerprint import MANIFEST, write_atomically
from rebus.log import say
from rebus.training.config import EvalsConfig

NICENESS = 10
THREADS_SHARE = 4
"""An evaluation gets a quarter of the cores, unless its recipe says `num_threads`, and yields them to the run."""

NOT_PASSED = ("RANK", "WORLD_SIZE", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "TORCHELASTIC_", "REBUS_CLOCK")
"""How variables begin that an evaluation must not hear: torchrun's, or it would join the run; and it costs no time of
the run's own."""


@dataclass(frozen=True)
class EvalResult:
    """What the evaluation of the checkpoint after `step` steps found: the plain numbers of its results.json."""

    step: int
    figures: dict[str, float]


@dataclass(frozen=True)
class _Running:
    step: int
    process: subprocess.Popen


def is_due(evals: EvalsConfig | None, done: int) -> bool:
    """Whether the checkpoint after `done` steps is to be evaluated; the same on every rank."""
    return evals is not None and done > 0 and done % evals.every == 0


def checkpoint_at(out: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps is saved to be evaluated."""
    return out / "at" / f"step-{step}"


class Evaluations:
    """Rank 0's evaluations. Results are added to <out>/evals.jsonl; each writes <out>/evals/step-N and step-N.log.

    first: where the run goes on. What was evaluated before is not again; checkpoints that wait in <out>/at are. A run
    from step 0 forgets both. A process of an earlier, killed run that is still at work holds the place (a lock that it
    inherited), and the others wait for it too.
    """

    def __init__(self, config: EvalsConfig, out: Path, *, first: int = 0) -> None:
        self._config, self._out = config, out
        self._rows = out / "evals.jsonl"
        if first == 0:
            self._rows.unlink(missing_ok=True)
            for folder in (out / "at", out / "evals"):
                shutil.rmtree(folder, ignore_errors=True)
        (out / "evals").mkdir(parents=True, exist_ok=True)
        self._done = {result.step for result in read_evals(self._rows)}
        self._running: _Running | None = None
        self._waiting: deque[int] = deque(sorted(self._left_over()))

    def start(self, step: int, checkpoint: Path) -> None:
        """Evaluates the whole checkpoint that lies at `checkpoint_at(out, step)`, now or when its turn comes."""
        if step in self._done:
            self._drop(checkpoint)
        elif step not in self._waiting and (self._running is None or self._running.step != step):
            self._waiting.append(step)
        self._launch_next()

    def poll(self) -> list[EvalResult]:
        """What has finished since; cheap where nothing has."""
        found = []
        if self._running is not None and self._running.process.poll() is not None:
            found = self._collect(self._running)
            self._running = None
        self._launch_next()
        return found

    def close(self, *, is_stopped: Callable[[], bool] = lambda: False) -> list[EvalResult]:
        """Waits for those that are left, and returns what they found. Ctrl-C or `is_stopped` ends the one at work: it
        and those that wait are taken up by the run that goes on."""
        found: list[EvalResult] = []
        try:
            if self._busy and not is_stopped():
                say(f"waiting for {len(self._waiting) + (self._running is not None)} evaluation(s); Ctrl-C leaves them")
            while self._busy and not is_stopped():
                found += self.poll()
                time.sleep(0.1)
        except KeyboardInterrupt:
            say("evaluations left undone")
        finally:
            self._end()
        return found

    @property
    def _busy(self) -> bool:
        return self._running is not None or bool(self._waiting)

    def _left_over(self) -> list[int]:
        found = [int(path.name.removeprefix("step-")) for path in (self._out / "at").glob("step-*")]
        whole = [step for step in found if (checkpoint_at(self._out, step) / MANIFEST).is_file()]
        for step in set(whole) & self._done:
            self._drop(checkpoint_at(self._out, step))
        return [step for step in whole if step not in self._done]

    def _launch_next(self) -> None:
        if self._running is not None or not self._waiting:
            return
        with open(self._out / "evals" / ".lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            step = self._waiting.popleft()
            try:
                self._running = _Running(step, self._launch(step, lock))
            except OSError as error:
                say(f"the evaluation after step {step:,} could not start ({error}); the run goes on")

    def _launch(self, step: int, lock: IO[str]) -> subprocess.Popen:
        """In a session of its own: a Ctrl-C in the terminal is the run's, which then decides."""
        out = self._out / "evals" / f"step-{step}"
        settings = [f"model={checkpoint_at(self._out, step)}", f"out={out}", f"device={self._config.device}"]
        command = [sys.executable, "-m", "rebus", "eval", str(self._config.recipe), *settings]
        with open(out.with_suffix(".log"), "w", encoding="utf-8") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(),
                pass_fds=[lock.fileno()],
                start_new_session=True,
            )
        with suppress(ProcessLookupError):  # it has ended already; poll says how
            os.setpriority(os.PRIO_PROCESS, process.pid, NICENESS)
        return process

    def _collect(self, ended: _Running) -> list[EvalResult]:
        out, status = self._out / "evals" / f"step-{ended.step}", ended.process.returncode
        try:
            if status:
                raise ValueError(f"exit status {status}")
            result = EvalResult(ended.step, _numbers(json.loads((out / "results.json").read_text(encoding="utf-8"))))
        except (OSError, ValueError) as error:
            say(f"the evaluation after step {ended.step:,} failed ({error}); {out}.log says why. The run goes on.")
            return []
        self._done.add(ended.step)
        rows = [*read_evals(self._rows), result]
        write_atomically(self._rows, "".join(json.dumps(asdict(r)) + "\n" for r in rows))
        self._drop(checkpoint_at(self._out, ended.step))
        return [result]

    def _drop(self, checkpoint: Path) -> None:
        if not self._config.keep:
            shutil.rmtree(checkpoint, ignore_errors=True)

    def _end(self) -> None:
        if self._running is not None:
            self._running.process.terminate()
            self._running.process.wait()
            self._running = None
        self._waiting.clear()


def finish_evaluations(config: EvalsConfig, out: Path) -> None:
    """Runs those of a whole run that wait in <out>/at, such as after a Ctrl-C; cheap where none does."""
    if any((out / "at").glob("step-*")):
        Evaluations(config, out, first=1).close()


def read_evals(path: Path) -> list[EvalResult]:
    """The rows of evals.jsonl, in the order in which they were found."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [EvalResult(**json.loads(line)) for line in lines]


def _numbers(results: dict) -> dict[str, float]:
    return {name: value for name, value in results.items() if type(value) in (int, float)}


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(NOT_PASSED)}
    threads = str(max(1, (os.cpu_count() or 1) // THREADS_SHARE))
    return {**kept, "OMP_NUM_THREADS": threads, "REBUS_QUIET": "1"}
