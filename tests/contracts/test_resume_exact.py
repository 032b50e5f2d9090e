"""Contract 5 with real processes: killed with -9 at twenty random moments, also while a state is written, and run
again, a run ends with the same weights, rows and quarantine, bit for bit; told to stop, it saves first."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from forked_ranks import DEADLINE_SECONDS, Ranks, train
from rebus.checkpoints.state import latest_state
from rebus.config import load_recipe
from rebus.errors import ConfigError
from rebus.fingerprint import file_fingerprint
from rebus.packs.config import PackRecipe
from rebus.packs.run import run as pack
from rebus.pictures.config import FixedConfig
from rebus.tokens.config import TokensConfig
from rebus.training.config import TrainRecipe
from rebus.training.loop import run
from rebus.training.metrics import read_rows
from tiny_samples import TinySample, tiny_picture, write_shards
from tiny_way import TinyWay, talk

STEPS = 64  # enough that every kill lands inside the run
COLOURS = ["red", "green", "blue", "white", "black"]
COMMON = {"steps": STEPS, "save_every": 1, "trackers": [], "max_bad_share": 0.5, "stall_seconds": 120.0}
ADAPTERS = {**COMMON, "packs_per_step": 2, "guard": {"spike": 1.2, "window": 8, "max_skipped": STEPS}}
"""With dropout, two micro-batches a step, and a guard that skips steps by what it remembers."""
EVERYTHING = {
    **COMMON,
    "packs_per_step": 4,
    "lora": None,
    "trains": {"tower": {"lr": 1e-3}, "connector": {"lr": 1e-2}, "language": {"lr": 1e-3}},
    "ema": {"decay": 0.9},
}
KILLS = {"one": 9, "two": 7, "elastic": 4}


def test_twenty_kills():
    assert sum(KILLS.values()) == 20


@pytest.fixture(scope="module")
def way(tmp_path_factory: pytest.TempPathFactory, speaking_folder: Path) -> TinyWay:
    """Captions with pictures, three of which are cut off, and conversations without one."""
    folder = tmp_path_factory.mktemp("killed")
    texts = [f"a photo of {'the ' * (i % 7)}{COLOURS[i % 5]} square" for i in range(40)]
    samples = [TinySample(text, tiny_picture(COLOURS[i % 5])) if i % 4 else talk(text) for i, text in enumerate(texts)]
    samples += [TinySample("a photo", tiny_picture(size=(64, 64))[:-40]) for _ in range(3)]
    tokens = TokensConfig(tokenizer=speaking_folder, image=FixedConfig(size=32, tokens_per_side=2))
    shards = write_shards(folder / "shards", samples)
    pack(PackRecipe(shards=[shards], tokens=tokens, capacity=96, out=folder / "plan", num_workers=1))
    return TinyWay(folder, folder / "plan", speaking_folder)


@pytest.fixture(scope="module")
def calm(way: TinyWay) -> Path:
    """The folder of `calm_one` and `calm_two`, which nothing disturbed."""
    train([way.recipe("calm_one", **ADAPTERS)], 1)
    train([way.recipe("calm_two", **EVERYTHING)], 2)
    return way.folder


def kill(recipe: Path, world: int, dice: random.Random, number: int) -> bool:
    """Starts a run and kills all of its ranks after some more rows: in the midst of writing a state, or at any moment.

    Returns whether a state was left half-written.
    """
    out = recipe.with_suffix("")
    rows = len(read_rows(out / "metrics.jsonl")) + dice.randint(1, 3)
    ranks = Ranks([recipe], world, recipe.with_suffix(".log"), partial(record_uids, out.name, recipe.parent, number))
    wait_for(lambda: len(read_rows(out / "metrics.jsonl")) >= rows, ranks)
    if number % 2:
        wait_for(lambda: bool(half_written(out)), ranks)
    else:
        time.sleep(dice.uniform(0, 0.1))
    ranks.kill()
    assert not (out / "manifest.json").exists()
    assert [process.exitcode for process in ranks.processes] == [-signal.SIGKILL] * world, ranks.said
    return bool(half_written(out))


def half_written(out: Path) -> list[Path]:
    return [path for path in out.glob("states/.step-*") if any(path.glob("*.safetensors*")) or path.is_dir()]


def wait_for(happened, ranks: Ranks) -> None:
    end = time.monotonic() + DEADLINE_SECONDS
    while not happened():
        assert ranks.are_alive, f"ended before it was killed:\n{ranks.said}"
        assert time.monotonic() < end, f"never came so far:\n{ranks.said}"
        time.sleep(0.001)


def record_uids(name: str, folder: Path, life: int, rank: int) -> None:
    """In a process of a run: from now on it writes down which documents it trains on."""
    from rebus.training import loop

    inner = loop.iterate_batches

    def recorded(*arguments, **settings):
        with open(folder / f"{name}-uids-{life:02d}-{rank}.jsonl", "w") as file:
            for step, batches in inner(*arguments, **settings):
                file.write(json.dumps([step, [uid for batch in batches for uid in batch.uids]]) + "\n")
                file.flush()
                yield step, batches

    loop.iterate_batches = recorded


def uids_of(folder: Path, name: str) -> dict[int, list[str]]:
    """The documents of each step over all ranks, sorted: of its last life, the one that counts."""
    lives: dict[int, dict[int, list[str]]] = {}
    for path in sorted(folder.glob(f"{name}-uids-*.jsonl")):
        life = lives.setdefault(int(path.stem.split("-")[-2]), {})
        for step, uids in map(json.loads, path.read_text().splitlines()):
            life.setdefault(step, []).extend(uids)
    return {step: sorted(uids) for _, life in sorted(lives.items()) for step, uids in life.items()}


def weights_of(out: Path) -> dict[str, str]:
    files = [path for path in out.rglob("*.safetensors") if "states" not in path.parts]
    assert files
    return {str(path.relative_to(out)): file_fingerprint(path) for path in files}


def told(out: Path) -> list[tuple]:
    """What the rows say, but for times and memory."""
    return [
        (row.step, row.loss, row.grad_norm, row.lr, row.tokens_total, row.num_documents, row.is_skipped)
        for row in read_rows(out / "metrics.jsonl")
    ]


def check_equal(out: Path, calm: Path) -> None:
    assert told(out) == told(calm)
    assert weights_of(out) == weights_of(calm)
    for name in ("quarantine.jsonl", "skipped.jsonl"):
        assert (out / name).exists() == (calm / name).exists()
        if (calm / name).exists():
            assert (out / name).read_text() == (calm / name).read_text()


@pytest.mark.parametrize(("name", "world", "settings"), [("one", 1, ADAPTERS), ("two", 2, EVERYTHING)])
def test_killed_again_and_again_it_ends_as_if_undisturbed(way: TinyWay, calm: Path, name, world, settings):
    recipe, dice = way.recipe(f"killed_{name}", **settings), random.Random(world)
    unfinished = [kill(recipe, world, dice, number) for number in range(KILLS[name])]
    assert any(unfinished), "no kill hit a state that was being written"
    train([recipe], world)
    check_equal(way.folder / f"killed_{name}", calm / f"calm_{name}")
    assert len((calm / f"calm_{name}" / "quarantine.jsonl").read_text().splitlines()) == 3


def test_the_guard_had_something_to_remember(calm: Path):
    skipped = [row.is_skipped for row in read_rows(calm / "calm_one" / "metrics.jsonl")]
    assert 0 < sum(skipped) < STEPS


def test_two_ranks_then_one_then_four_train_on_the_same(way: TinyWay, calm: Path):
    """The same documents at every step, the same losses to rounding."""
    recipe, dice = way.recipe("elastic", **EVERYTHING), random.Random(5)
    for number, world in enumerate((2, 1, 2, 4)[: KILLS["elastic"]]):
        kill(recipe, world, dice, number)
    last = Ranks([recipe], 4, recipe.with_suffix(".log"), partial(record_uids, "elastic", way.folder, 9))
    assert last.wait() == [0] * 4, last.said
    reference = way.recipe("reference", **EVERYTHING)
    alone = Ranks([reference], 1, reference.with_suffix(".log"), partial(record_uids, "reference", way.folder, 0))
    assert alone.wait() == [0], alone.said
    expected, found = told(way.folder / "reference"), told(way.folder / "elastic")
    assert uids_of(way.folder, "elastic") == uids_of(way.folder, "reference")
    assert [(row[0], *row[4:]) for row in found] == [(row[0], *row[4:]) for row in expected]
    assert [row[1] for row in found] == pytest.approx([row[1] for row in expected], abs=1e-5)
    quarantines = [(way.folder / name / "quarantine.jsonl").read_text() for name in ("elastic", "reference")]
    assert sorted(quarantines[0].splitlines()) == sorted(quarantines[1].splitlines())


def test_torchrun_told_to_stop_saves_and_goes_on(way: TinyWay, calm: Path):
    """SIGTERM, then Ctrl-C, then to the end: as if undisturbed."""
    recipe, out = way.recipe("stopped", **EVERYTHING), way.folder / "stopped"
    for number, name in ((signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C")):
        message = stop_torchrun(recipe, out, number)
        done = len(read_rows(out / "metrics.jsonl"))
        state = latest_state(out / "states")
        assert state is not None
        assert state.step == done < STEPS
        assert message.count(f"after step {done:,} of {STEPS}; its state is saved") == 1, "one rank says so"
        assert f"stopped by {name}" in message
        assert not half_written(out)
    train([recipe], 2)
    check_equal(out, calm / "calm_two")


def stop_torchrun(recipe: Path, out: Path, number: int) -> str:
    """Starts two ranks by torchrun, sends it the signal some rows later and returns what was said."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    rows, log = len(read_rows(out / "metrics.jsonl")) + 3, recipe.with_suffix(f".{number}.log")
    with open(log, "w") as said:
        process = subprocess.Popen(
            [*launch, "-m", "rebus", "train", str(recipe)],
            stderr=said,
            stdout=said,
            env=os.environ | {"COLUMNS": "400"},
            # A shell that runs this test in the background makes its children deaf to Ctrl-C; a terminal does not.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        end = time.monotonic() + DEADLINE_SECONDS
        while len(read_rows(out / "metrics.jsonl")) < rows:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.01)
        process.send_signal(number)
        assert process.wait(DEADLINE_SECONDS) != 0
    return log.read_text()


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
        this.writer.settle()
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


def test_a_finished_run_is_not_run_again(tiny_way):
    recipe = load_recipe(TrainRecipe, tiny_way.recipe("done", steps=2))
    before = (run(recipe) / "metrics.jsonl").stat().st_mtime_ns
    assert (run(recipe) / "metrics.jsonl").stat().st_mtime_ns == before


def test_another_recipe_costs_no_run(tiny_way, monkeypatch):
    """What came to a state, or to its end, is left alone until one asks for its place."""
    first = load_recipe(TrainRecipe, tiny_way.recipe("again", steps=3))
    other = load_recipe(TrainRecipe, tiny_way.recipe("again", steps=3, seed=1))
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            run(first)
    with pytest.raises(ConfigError, match=r"the state after step 3 of another run:\n  seed: 0 there, 1 here"):
        run(other)
    before = weights_of(run(first))
    with pytest.raises(ConfigError, match="a whole checkpoint of another run"):
        run(other)
    assert weights_of(first.out) == before
    second = run(other, replace=True)
    assert weights_of(second) != before
    assert [row.step for row in read_rows(second / "metrics.jsonl")] == [0, 1, 2]
