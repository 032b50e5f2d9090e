"""Contract 5: killed with -9 and run again, twice in a row, a run ends with the same weights, bit for bit."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rebus.config import load_recipe
from rebus.fingerprint import file_fingerprint
from rebus.training.config import TrainRecipe
from rebus.training.loop import run
from rebus.training.metrics import read_rows

DEADLINE_SECONDS = 120


def kill_after(recipe: Path, metrics: Path, num_rows: int) -> None:
    """Starts `rebus train` in a process of its own and kills it once metrics.jsonl has so many rows."""
    process = subprocess.Popen([sys.executable, "-m", "rebus", "train", str(recipe)], stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + DEADLINE_SECONDS
    while len(read_rows(metrics)) < num_rows:
        assert process.poll() is None, f"ended before it could be killed: {process.stderr and process.stderr.read()}"
        assert time.monotonic() < end, "never came so far"
    os.kill(process.pid, signal.SIGKILL)
    _, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL


def weights_of(run_folder: Path) -> dict[str, str]:
    files = [run_folder / "connector.safetensors", run_folder / "adapter" / "adapter_model.safetensors"]
    return {path.name: file_fingerprint(path) for path in files}


def test_killed_twice_ends_like_undisturbed(tiny_way):
    steps = 120  # enough that a kill lands inside the run on any machine
    calm = run(load_recipe(TrainRecipe, tiny_way.recipe("calm", steps=steps)))
    recipe = tiny_way.recipe("killed", steps=steps)
    killed = tiny_way.folder / "killed"
    kill_after(recipe, killed / "metrics.jsonl", 7)
    assert not (killed / "manifest.json").exists()
    kill_after(recipe, killed / "metrics.jsonl", 19)
    run(load_recipe(TrainRecipe, recipe))

    assert weights_of(killed) == weights_of(calm)
    expected, found = read_rows(calm / "metrics.jsonl"), read_rows(killed / "metrics.jsonl")
    assert [(row.step, row.loss, row.tokens_total) for row in found] == [
        (row.step, row.loss, row.tokens_total) for row in expected
    ]


@pytest.mark.parametrize("save_every", [1, 5])
def test_how_often_states_are_saved_changes_nothing(tiny_way, save_every):
    often = run(load_recipe(TrainRecipe, tiny_way.recipe("often", save_every=save_every)))
    seldom = run(load_recipe(TrainRecipe, tiny_way.recipe("seldom", save_every=12)))
    assert weights_of(often) == weights_of(seldom)


def test_a_finished_run_is_not_run_again(tiny_way):
    recipe = load_recipe(TrainRecipe, tiny_way.recipe("done", steps=2))
    before = (run(recipe) / "metrics.jsonl").stat().st_mtime_ns
    assert (run(recipe) / "metrics.jsonl").stat().st_mtime_ns == before


def test_another_recipe_starts_anew(tiny_way):
    first = run(load_recipe(TrainRecipe, tiny_way.recipe("again", steps=3)))
    before = weights_of(first)
    second = run(load_recipe(TrainRecipe, tiny_way.recipe("again", steps=3, seed=1)))
    assert weights_of(second) != before
    assert [row.step for row in read_rows(second / "metrics.jsonl")] == [0, 1, 2]
