"""A stalled run ends by itself and says which rank is stuck and where; a run that gets on is left alone."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forked_ranks import free_port
from rebus.mesh import Mesh
from rebus.training.timing import PHASES, Stopwatch
from rebus.training.watchdog import FAILED, LEFT, ORDER, STALLED, Heartbeat, Seen, Watchdog, judge
from rebus.training.watchdog import _Watched as Watched

DEADLINE_SECONDS = 90


def test_every_phase_has_its_place():
    assert set(PHASES) < set(ORDER)


def test_the_rank_that_waits_for_data_keeps_the_others_waiting():
    phases = ["communication", "wait", "communication", "communication"]
    verdict = judge([Seen(rank, 12, phase) for rank, phase in enumerate(phases)], 1800.0)
    assert verdict.text == "rank 1 is at step 12 in 'wait' for 1,800 s; ranks 0, 2, 3 in 'communication' wait for it"
    assert (verdict.stuck, verdict.speaker) == ((1,), 0)


@pytest.mark.parametrize(
    ("seen", "stuck", "speaker", "words"),
    [
        ([Seen(0, 12, "other"), Seen(1, 13, "communication")], (0,), 0, "rank 0 is at step 12 in 'other'"),
        ([Seen(0, 12, "backward"), Seen(1, 12, "communication")], (0,), 0, "rank 1 in 'communication' waits for it"),
        ([Seen(0, 5, "backward", False), Seen(1, 5, "backward")], (0,), 1, "rank 0 is dead, frozen or cut off (last"),
        ([Seen(0, 5, "wait"), Seen(1, -1, "start", False)], (1,), 0, "cut off (never heard of) for"),
        ([Seen(0, 5, "backward"), Seen(1, 5, "backward")], (0, 1), 0, "none is behind the others"),
        ([Seen(0, 7, LEFT, False), Seen(1, 6, "other"), Seen(2, 7, "other")], (1,), 1, "rank 2 in 'other' waits"),
        ([Seen(0, 7, FAILED, False), Seen(1, 7, "other")], (0,), 1, "(last heard of at step 7 in 'failed')"),
        ([Seen(0, 7, "wait", host="one")], (0,), 0, "rank 0 (one) is at step 7 in 'wait' for 60 s"),
    ],
)
def test_verdicts(seen, stuck, speaker, words):
    verdict = judge(seen, 60.0)
    assert (verdict.stuck, verdict.speaker) == (stuck, speaker)
    assert words in verdict.text


RANKS = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from([*ORDER, LEFT, FAILED]), st.booleans()), min_size=1, max_size=40
)


@given(RANKS)
def test_a_verdict_always_names_who_is_silent_or_behind(ranks):
    seen = [Seen(rank, *one) for rank, one in enumerate(ranks)]
    verdict = judge(seen, 60.0)
    present = [one for one in seen if one.phase != LEFT]
    silent = {one.rank for one in present if not one.is_alive}
    assert verdict.stuck
    assert verdict.text
    if silent:
        assert set(verdict.stuck) == silent
    elif present:
        assert min(one.step for one in present) == min(seen[rank].step for rank in verdict.stuck)
    living = [one.rank for one in present if one.is_alive]
    assert not living or verdict.speaker == living[0]


def beat(rank: int, step: int, phase: str, moment: float) -> Heartbeat:
    return Heartbeat(rank, step, step, phase, moment, 1, "here")


def test_a_heartbeat_that_is_not_renewed_is_silence_whatever_its_clock_says():
    watched, mine = Watched(3), beat(0, 5, "communication", 0.0)
    for moment in range(10):  # rank 1's clock is a year off but runs; rank 2's file is of a process long gone
        beats = [beat(0, 5, "communication", moment), beat(1, 5, "wait", moment - 3e7), beat(2, 5, "wait", 1.0)]
        assert not watched.look(beats, 100.0 + moment)
    assert [one.is_alive for one in watched.seen(106.0, mine)] == [True, True, False]
    assert watched.look([None, beat(1, 6, "wait", 0.0), None], 111.0), "rank 1 got on"
    assert not watched.is_judged
    assert not watched.look([None, beat(1, 6, "dumped", 0.0), None], 112.0)
    assert watched.is_judged, "rank 1 saw the stall first"


def test_heartbeats_say_where_a_rank_is_and_that_it_left(tmp_path: Path):
    stopwatch = Stopwatch()
    with Watchdog(tmp_path, Mesh(3, 8), stopwatch, stall_seconds=60.0):
        first = json.loads((tmp_path / "heartbeats" / "rank-00003.json").read_text())
    assert (first["rank"], first["step"], first["phase"], first["pid"]) == (3, 0, "start", os.getpid())
    watchdog = Watchdog(tmp_path, Mesh(3, 8), stopwatch, 60.0)
    watchdog.beat(12)
    with pytest.raises(ZeroDivisionError), watchdog:
        raise ZeroDivisionError
    last = json.loads((tmp_path / "heartbeats" / "rank-00003.json").read_text())
    assert (last["step"], last["phase"]) == (12, FAILED)
    assert [path.name for path in (tmp_path / "heartbeats").iterdir()] == ["rank-00003.json"]


SCRIPT = """
import sys, time
from pathlib import Path
import torch
from rebus.mesh import join_mesh
from rebus.training.timing import Stopwatch
from rebus.training.watchdog import Watchdog

def loader_of_the_stuck():
    time.sleep(3600)

folder, stall_seconds = Path(sys.argv[1]), float(sys.argv[2])
mesh, stopwatch = join_mesh(), Stopwatch()
with Watchdog(folder, mesh, stopwatch, stall_seconds) as watchdog:
    for step in range(1000):
        watchdog.beat(step)
        with stopwatch.phase("wait"):
            if step == 7 and mesh.rank == 1:
                loader_of_the_stuck()
        with stopwatch.phase("communication"):
            torch.distributed.all_reduce(torch.ones(1))
"""


def start(folder: Path, stall_seconds: float) -> list[subprocess.Popen]:
    common = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": "2"}
    command = [sys.executable, "-c", SCRIPT, str(folder), str(stall_seconds)]
    return [
        subprocess.Popen(command, env=common | {"RANK": rank}, stderr=subprocess.PIPE, text=True) for rank in ("0", "1")
    ]


def wait_for_heartbeat(folder: Path, step: int, phase: str, ranks: list[subprocess.Popen]) -> None:
    """Until rank 0 has written that it is there."""
    end, path = time.monotonic() + DEADLINE_SECONDS, folder / "heartbeats" / "rank-00000.json"
    while not path.exists() or (body := json.loads(path.read_text()))["step"] != step or body["phase"] != phase:
        assert all(rank.poll() is None for rank in ranks)
        assert time.monotonic() < end, "never got stuck"
        time.sleep(0.05)


def test_both_ranks_leave_and_the_sleeping_one_is_named(tmp_path: Path):
    ranks = start(tmp_path, 3.0)
    messages = [rank.communicate(timeout=DEADLINE_SECONDS)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [STALLED, STALLED], messages
    assert "no progress: rank 1 (" in messages[0]
    assert "is at step 7 in 'wait' for" in messages[0]
    assert "rank 0 (" in messages[0]
    assert "in 'communication' waits for it" in messages[0]
    assert messages[1].count("no progress") == 0, "one speaks"
    stalls = tmp_path / "stalls"
    assert (stalls / "step-000007.txt").read_text().strip() in messages[0]
    assert "loader_of_the_stuck" in (stalls / "step-000007-rank-00001.txt").read_text()
    assert "all_reduce" in (stalls / "step-000007-rank-00000.txt").read_text()


def test_a_frozen_rank_is_named_by_the_other(tmp_path: Path):
    """SIGSTOP: not even its watchdog runs. It is rank 0 that is frozen here, so rank 1 must speak."""
    ranks = start(tmp_path, 4.0)
    try:
        wait_for_heartbeat(tmp_path, 7, "communication", ranks)
        ranks[0].send_signal(signal.SIGSTOP)
        message = ranks[1].communicate(timeout=DEADLINE_SECONDS)[1]
        assert ranks[1].returncode == STALLED, message
        assert "no progress: rank 0 (" in message
        assert "is dead, frozen or cut off (last heard of at step 7 in 'communication')" in message
    finally:
        ranks[0].kill()
        ranks[0].communicate()
