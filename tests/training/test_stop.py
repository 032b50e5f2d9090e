"""Signals ask a run to stop; a second Ctrl-C ends it at once, even while the main thread is blocked."""

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from rebus.mesh import Mesh
from rebus.training.stop import SIGNALS, StopSignal

STATUS = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 128 + signal.SIGUSR1}


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_asks_and_its_number_becomes_the_status(number):
    before = [signal.getsignal(one) for one in SIGNALS]
    with StopSignal() as stop:
        assert not stop.is_set
        os.kill(os.getpid(), number)
        assert stop.is_set
        stopped = stop.stopped(12, 4000)
    assert stopped.status == STATUS[number]
    assert "after step 12 of 4,000; its state is saved. Run the same command again" in str(stopped)
    assert [signal.getsignal(one) for one in SIGNALS] == before


def test_handlers_come_back_after_an_error_and_threads_end():
    before, threads = signal.getsignal(signal.SIGTERM), threading.active_count()
    with pytest.raises(ZeroDivisionError), StopSignal():
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGTERM) is before
    assert threading.active_count() == threads
    descriptor = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(descriptor)
    assert descriptor == -1


def test_a_rank_that_was_told_by_another_ends_without_a_word():
    with StopSignal(Mesh(1, 2)) as stop:
        stopped = stop.stopped(3, 4)
    assert (stopped.status, str(stopped)) == (143, "")


def test_the_first_signal_counts():
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.stopped(1, 2).status == 143


def test_outside_the_main_thread_nothing_is_touched():
    def enter() -> bool:
        with StopSignal() as stop:
            return stop.is_set

    before = signal.getsignal(signal.SIGINT)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(enter).result() is False
    assert signal.getsignal(signal.SIGINT) is before


@pytest.fixture
def blocked():
    """A process whose main thread never comes back to Python, as in a collective: no Python handler ever runs."""
    code = (
        "import ctypes, os\n"
        "from rebus.training.stop import StopSignal\n"
        "with StopSignal():\n"
        "    lock = ctypes.create_string_buffer(256)\n"
        "    library = ctypes.CDLL(None)\n"
        "    assert library.pthread_mutex_init(lock, None) == 0\n"
        "    library.pthread_mutex_lock(lock)\n"
        "    print('ready', flush=True)\n"
        "    library.pthread_mutex_lock(lock)\n"  # ours already: waits forever, whatever signals come
    )
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.communicate()


def told(process: subprocess.Popen) -> str:
    assert process.stderr is not None
    return process.stderr.readline()


def test_a_second_ctrl_c_ends_a_blocked_process(blocked):
    blocked.send_signal(signal.SIGINT)
    assert "Ctrl-C again ends at once" in told(blocked)
    while blocked.poll() is None:  # within a second it counts as the same one: launchers forward theirs
        blocked.send_signal(signal.SIGINT)
        threading.Event().wait(0.05)
    assert blocked.returncode == 130
    assert "stopped at once. Run the same command again" in told(blocked)


def test_a_ctrl_c_that_comes_twice_is_one(blocked):
    for _ in range(3):
        blocked.send_signal(signal.SIGINT)
    assert "Ctrl-C again ends at once" in told(blocked)
    blocked.send_signal(signal.SIGTERM)  # what torchrun sends after it
    with pytest.raises(subprocess.TimeoutExpired):
        blocked.wait(1.5)
