"""A real Ray cluster of two workers on this machine: what it must do besides the work (the same tables and a killed
worker: tests/scores/test_score_run.py)."""

import os
import signal
from pathlib import Path

import pytest

from rebus.cluster import MAX_TRIES, _Worker, cut_evenly
from rebus.engine import Cluster, map_shards, on_ray
from rebus.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def cluster():
    with on_ray(Cluster("local", num_workers=2)):
        yield


def test_results_come_in_the_items_order(cluster):
    here = os.getcwd()

    def square(number: int) -> tuple[int, str, int]:
        return number**2, os.getcwd(), os.getpid()

    found = map_shards(square, range(20), description="squares")
    assert [square for square, _, _ in found] == [number**2 for number in range(20)]
    assert {folder for _, folder, _ in found} == {here}
    assert os.getpid() not in {process for _, _, process in found}


def test_an_error_of_the_work_is_raised_here_as_it_was(cluster):
    def refuse(number: int) -> int:
        raise DataError(f"shard {number} is odd") if number % 2 else ConfigError("never")

    with pytest.raises(DataError, match="shard 7 is odd"):
        map_shards(refuse, [7], description="refusing")
    assert map_shards(abs, [-1, -2], description="after it") == [1, 2]


def test_what_kills_every_worker_is_given_up_and_named(cluster, tmp_path):
    tries = tmp_path / "tries"

    def die(name: str) -> None:
        with tries.open("a") as file:
            file.write("x")
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(DataError, match=rf"{MAX_TRIES} workers died at poison.tar"):
        map_shards(die, ["poison.tar"], description="dying")
    assert tries.read_text() == "x" * MAX_TRIES


def test_a_worker_that_fits_no_node_is_refused(cluster):
    with on_ray(Cluster("local", cpus=10_000)), pytest.raises(ConfigError, match="room for a worker of 10000 CPUs"):
        map_shards(abs, [1], description="large")


def test_a_worker_on_a_node_without_the_folder_says_so(tmp_path):
    with pytest.raises(ConfigError, match="gone is not on every node"):
        _Worker(str(tmp_path / "gone"))


@pytest.mark.parametrize(("num_items", "num_workers"), [(3, 4), (8, 4), (10, 8), (24, 2), (1000, 2), (1, 1)])
def test_pieces_leave_no_worker_idle(num_items, num_workers):
    pieces = cut_evenly(range(num_items), num_workers, longest=8)
    assert [item for piece in pieces for item in piece] == list(range(num_items))
    assert max(map(len, pieces)) <= 8
    assert len(pieces) >= min(num_items, num_workers)


def test_work_of_a_file_is_known_to_the_workers(cluster):
    assert map_shards(Path.exists, [Path("/")], description="pickled by name") == [True]
