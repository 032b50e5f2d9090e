"""Which rank is stuck, and where. A rank that waits for another waits inside a collective, for good, using its
processor in full; from outside all of them look alike. A thread of each rank says in a file where its rank is, and
after a while without progress all dump their stacks, the lowest living one names the rank behind, and all end."""

import faulthandler
import json
import os
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event, Thread
from types import TracebackType

from rebus.fingerprint import write_atomically
from rebus.log import console, say
from rebus.mesh import Mesh
from rebus.training.timing import Stopwatch

STALLED = 75
"""Exit status of a run that made no progress (EX_TEMPFAIL of sysexits.h: run it again)."""

LEFT, FAILED = "left", "failed"
"""The last phase that a rank writes: it went through all of its steps; it ended by an error."""

DUMPED, SPOKEN = "dumped", "spoken"
"""Phases of a stalled rank that is about to end: its stacks are written; the verdict is, too."""

BUSY_SECONDS = 5.0
"""A heartbeat is written at most this often."""

ORDER = ("start", "wait", "transfer", "forward", "backward", "optimizer", "heldout", "saving", "other", "communication")
"""Who is behind among ranks at one step. Communication is last: a rank there waits for those that are not."""


@dataclass(frozen=True)
class Heartbeat:
    """Where a rank says that it is. beats: how often it came round. time: when that was written, Unix seconds."""

    rank: int
    step: int
    beats: int
    phase: str
    time: float
    pid: int
    host: str

    @property
    def place(self) -> tuple[int, int, str]:
        return self.step, self.beats, self.phase


@dataclass(frozen=True)
class Seen:
    """What one rank sees of another. is_alive: its heartbeat is renewed; else it is dead, frozen or cut off."""

    rank: int
    step: int
    phase: str
    is_alive: bool = True
    host: str = ""


@dataclass(frozen=True)
class Verdict:
    """stuck: the ranks behind; all of them where none is. speaker: the rank that says so."""

    stuck: tuple[int, ...]
    speaker: int
    text: str


def judge(seen: Sequence[Seen], seconds: float) -> Verdict:
    """Who keeps the others waiting, `seconds` after the last progress: who is silent; else who is at the lowest step,
    there in the earliest phase."""
    present = [one for one in seen if one.phase != LEFT] or list(seen)
    living = [one for one in present if one.is_alive]
    silent = [one for one in present if not one.is_alive]
    stuck = silent or [one for one in living if _place(one) == min(map(_place, living))]
    others = [one for one in present if one not in stuck]
    clauses = [f"{_ranks(group)} {_where(group[0])} for {seconds:,.0f} s" for group in _alike(stuck)]
    if others:
        waiting = [f"{_ranks(group, with_verb=False)} in '{group[0].phase}'" for group in _alike(others)]
        clauses.append(f"{', '.join(waiting)} {'wait' if len(others) > 1 else 'waits'} for {_them(stuck)}")
    elif len(stuck) > 1:
        clauses.append("none is behind the others: a collective itself does not end")
    speaker = min((one.rank for one in living), default=min(one.rank for one in present))
    return Verdict(tuple(one.rank for one in stuck), speaker, "; ".join(clauses))


def _place(one: Seen) -> tuple[int, int]:
    return one.step, ORDER.index(one.phase) if one.phase in ORDER else len(ORDER)


def _alike(group: Sequence[Seen]) -> list[list[Seen]]:
    found: dict[tuple, list[Seen]] = {}
    for one in group:
        found.setdefault((one.is_alive, one.step, one.phase), []).append(one)
    return list(found.values())


def _where(one: Seen) -> str:
    place = f"at step {one.step:,} in '{one.phase}'"
    heard = f"last heard of {place}" if one.step >= 0 else "never heard of"
    return place if one.is_alive else f"dead, frozen or cut off ({heard})"


def _ranks(group: Sequence[Seen], *, with_verb: bool = True) -> str:
    """`rank 1 (host) is`, `ranks 0, 2, 3 are`: hosts are named of few, where they differ from none."""
    names = [f"{one.rank} ({one.host})" if one.host and len(group) < 4 else str(one.rank) for one in group[:16]]
    more = f" and {len(group) - 16:,} more" if len(group) > 16 else ""
    verb = (" is" if len(group) == 1 else " are") if with_verb else ""
    return f"rank{'' if len(group) == 1 else 's'} {', '.join(names)}{more}{verb}"


def _them(stuck: Sequence[Seen]) -> str:
    return "it" if len(stuck) == 1 else "them"


class Watchdog:
    """While entered, a thread writes <folder>/heartbeats/rank-NNNNN.json and ends the process with status STALLED once
    neither the step nor the phase of any rank has changed for `stall_seconds`. It needs nothing of the main thread,
    which may be blocked in a collective; a rank that holds the interpreter's lock, or is stopped, others report.

    Others' files are read from half of that time without progress on, and judged by this machine's own clock.
    """

    def __init__(self, folder: Path, mesh: Mesh, stopwatch: Stopwatch, stall_seconds: float) -> None:
        self._folder, self._mesh, self._stopwatch, self._stall_seconds = folder, mesh, stopwatch, stall_seconds
        self._interval = min(BUSY_SECONDS, stall_seconds / 10)
        self._step, self._beats = 0, 0
        self._host = socket.gethostname()
        self._left = Event()
        self._thread = Thread(target=self._watch, name="rebus-watchdog", daemon=True)

    def beat(self, step: int) -> None:
        """Says that the run got on; also inside a step, where something long gets on without a phase."""
        self._step, self._beats = step, self._beats + 1

    def __enter__(self) -> "Watchdog":
        self._write(self._now())
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._left.set()
        self._thread.join()
        self._write(self._now(LEFT if kind is None else FAILED))

    def _now(self, phase: str | None = None) -> Heartbeat:
        phase = phase or self._stopwatch.now
        return Heartbeat(self._mesh.rank, self._step, self._beats, phase, time.time(), os.getpid(), self._host)

    def _path(self, rank: int) -> Path:
        return self._folder / "heartbeats" / f"rank-{rank:05d}.json"

    def _write(self, beat: Heartbeat) -> None:
        """Whole or not at all, but not synced: it is renewed in seconds. A full disk is not this thread's to report."""
        path = self._path(beat.rank)
        temporary = path.with_name(f".{path.name}.tmp")
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(asdict(beat)) + "\n")
            os.replace(temporary, path)

    def _read(self, rank: int) -> Heartbeat | None:
        try:
            return Heartbeat(**json.loads(self._path(rank).read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def _read_all(self) -> list[Heartbeat | None]:
        return [self._read(rank) for rank in range(self._mesh.world)]

    def _watch(self) -> None:
        watched = _Watched(self._mesh.world)
        place, since = self._now().place, time.monotonic()
        while not self._left.wait(self._interval):
            mine, now = self._now(), time.monotonic()
            self._write(mine)
            if mine.place != place:
                place, since = mine.place, now
                watched = _Watched(self._mesh.world)
            elif now - since >= self._stall_seconds / 2:
                if watched.look(self._read_all(), now):
                    since = now - self._stall_seconds / 2  # another got on: wait for it as long again
                elif watched.is_judged or now - since >= self._stall_seconds:
                    self._end(watched.seen(now - 3 * self._interval, mine), now - since)

    def _end(self, seen: Sequence[Seen], seconds: float) -> None:
        """Dumps, speaks or waits until it is said, and ends the process: torchrun then starts again, or reports."""
        verdict, stalls = judge(seen, seconds), self._folder / "stalls"
        self._dump(stalls / f"step-{self._step:06d}-rank-{self._mesh.rank:05d}.txt")
        self._write(self._now(DUMPED))
        if verdict.speaker == self._mesh.rank:
            text = f"no progress: {verdict.text}. Stacks of all living ranks are in {stalls}. Run the same command "
            text += "again: it goes on from the last saved state."
            # In a thread of its own: what blocks the main thread may be the terminal itself.
            speaking = Thread(target=_say_and_write, args=(text, stalls / f"step-{self._step:06d}.txt"), daemon=True)
            speaking.start()
            speaking.join(BUSY_SECONDS)
            self._write(self._now(SPOKEN))
        self._wait_for(verdict.speaker, {one.rank for one in seen if one.is_alive and one.phase != LEFT})
        os._exit(STALLED)

    def _wait_for(self, speaker: int, living: set[int]) -> None:
        """Until every living rank has dumped and one has spoken: the first to leave takes the others with it."""
        end = time.monotonic() + 6 * self._interval
        while time.monotonic() < end:
            phases = {beat.rank: beat.phase for beat in self._read_all() if beat is not None}
            phases[self._mesh.rank] = SPOKEN if speaker == self._mesh.rank else DUMPED
            if phases.get(speaker) == SPOKEN and all(phases.get(rank) in (DUMPED, SPOKEN) for rank in living):
                return
            time.sleep(self._interval / 4)

    def _dump(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "w", encoding="utf-8") as file:
                now = self._now()
                file.write(f"rank {now.rank} on {now.host} (process {now.pid}), step {now.step} in '{now.phase}'\n\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
        except OSError as error:
            say(f"the stacks of rank {self._mesh.rank} could not be written ({error}).")


class _Watched:
    """Of every rank: its last heartbeat and when, by this machine's clock, that was last renewed."""

    def __init__(self, world: int) -> None:
        self.beats: list[Heartbeat | None] = [None] * world
        self.renewed: list[float | None] = [None] * world
        self.is_judged = False  # another rank saw the stall first

    def look(self, beats: Sequence[Heartbeat | None], now: float) -> bool:
        """Takes down what the files say. Returns whether any rank is elsewhere than at the last look."""
        got_on = False
        for rank, beat in enumerate(beats):
            before = self.beats[rank]
            if beat is None or beat == before:
                continue
            if before is not None:  # the first look says nothing of how old it is
                self.renewed[rank] = now
                if beat.phase in (DUMPED, SPOKEN):
                    self.is_judged = True
                    continue  # where it was stands
                got_on |= beat.place != before.place
            self.beats[rank] = beat
        return got_on

    def seen(self, alive_since: float, mine: Heartbeat) -> list[Seen]:
        found = []
        for rank, (beat, renewed) in enumerate(zip(self.beats, self.renewed, strict=True)):
            if rank == mine.rank:
                found.append(Seen(rank, mine.step, mine.phase, host=mine.host))
            elif beat is None:
                found.append(Seen(rank, -1, "start", is_alive=False))
            else:
                alive = renewed is not None and renewed >= alive_since
                found.append(Seen(rank, beat.step, beat.phase, alive, beat.host))
        return found


def _say_and_write(text: str, path: Path) -> None:
    with suppress(OSError):
        write_atomically(path, text + "\n")
    console.print(text, highlight=False, markup=False, soft_wrap=True)
    sys.stdout.flush()
    sys.stderr.flush()
