"""Contract 5: killed with -9 and run again, twice in a row, a run ends with the same weights, bit for bit."""

import os
import signal
import socket
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


def kill_after(recipe: Path, metrics: Path, num_rows: int, world: int = 1) -> None:
    """Starts `rebus train` in processes of its own and kills them once metrics.jsonl has so many rows."""
    command = [sys.executable, "-m", "rebus", "train", str(recipe)]
    ranks = [
        subprocess.Popen(command, env=os.environ | place, stderr=subprocess.PIPE, text=True) for place in places(world)
    ]
    end = time.monotonic() + DEADLINE_SECONDS
    while len(read_rows(metrics)) < num_rows:
        for process in ranks:
            assert process.poll() is None, f"ended before it was killed: {process.stderr and process.stderr.read()}"
        assert time.monotonic() < end, "never came so far"
    for process in ranks:
        os.kill(process.pid, signal.SIGKILL)
    for process in ranks:
        _, _ = process.communicate()
        assert process.returncode == -signal.SIGKILL


def places(world: int) -> list[dict[str, str]]:
    """What torchrun would tell each rank; by itself, since torchrun's ranks outlive it when it is killed."""
    if world == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(world)}
    return [{**common, "RANK": str(rank)} for rank in range(world)]


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


def stop_at(monkeypatch, step: int) -> None:
    """From now on a run ends as if it had been killed once the state after `step` steps is written."""
    from rebus.training import loop

    def save(this, done, progress):
        write(this, done, progress)
        if done == step:
            raise KeyboardInterrupt

    write = loop.save
    monkeypatch.setattr(loop, "save", save)


def test_a_run_goes_on_at_and_behind_the_end_of_an_epoch(tiny_way, monkeypatch):
    settings = {"packs_per_step": 2, "save_every": 1, "steps": 9, "num_workers": 0}
    calm = run(load_recipe(TrainRecipe, tiny_way.recipe("calm", **settings)))
    rows = read_rows(calm / "metrics.jsonl")
    at_the_end = next(number for number, row in enumerate(rows, start=1) if row.epoch >= 1)
    assert at_the_end < 8
    recipe = load_recipe(TrainRecipe, tiny_way.recipe("stopped", **settings))
    for step in (at_the_end - 1, at_the_end, at_the_end + 1):
        with monkeypatch.context() as patch:
            stop_at(patch, step)
            with pytest.raises(KeyboardInterrupt):
                run(recipe)
    assert weights_of(run(recipe)) == weights_of(calm)
    assert [row.loss for row in read_rows(recipe.out / "metrics.jsonl")] == [row.loss for row in rows]


def test_a_run_goes_on_with_another_number_of_ranks(tiny_way):
    """Two gloo ranks, killed once, then one alone: the same packs, the same losses to rounding."""
    settings = {"lora": {"rank": 2, "alpha": 4}, "steps": 40, "save_every": 2}  # no dropout: it is drawn rank by rank
    calm = run(load_recipe(TrainRecipe, tiny_way.recipe("calm", **settings)))
    recipe = tiny_way.recipe("pair", **settings)
    kill_after(recipe, tiny_way.folder / "pair" / "metrics.jsonl", 5, world=2)
    found = read_rows(run(load_recipe(TrainRecipe, recipe)) / "metrics.jsonl")
    expected = read_rows(calm / "metrics.jsonl")
    assert [(row.step, row.num_tokens) for row in found] == [(row.step, row.num_tokens) for row in expected]
    assert [row.loss for row in found] == pytest.approx([row.loss for row in expected], abs=1e-5)


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
