"""Evaluations beside a run: real processes on a tiny checkpoint, in turn, over kills and failures."""

import io
import json
import os
import shutil
import sys
import tarfile
import textwrap
from pathlib import Path

import pytest
import yaml

from rebus.shards.config import ShardsRecipe
from rebus.shards.run import run as index_shards
from rebus.training import evaluate
from rebus.training.config import EvalsConfig
from rebus.training.evaluate import Evaluations, checkpoint_at, finish_evaluations, is_due, read_evals
from tiny_samples import tiny_picture


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In place of `python -m rebus`: writes results.json from its arguments, once `go` lies there; fails at step 13."""
    script = tmp_path / "stand_in.py"
    script.write_text(
        textwrap.dedent(
            f"""\
            #!{sys.executable}
            import json, os, pathlib, sys, time
            settings = dict(argument.split("=", 1) for argument in sys.argv[5:])
            out = pathlib.Path(settings["out"])
            while not pathlib.Path({str(tmp_path)!r}, "go").exists():
                time.sleep(0.02)
            if out.name == "step-13":
                sys.exit("no such luck")
            out.mkdir()
            heard = [name for name in os.environ if name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "REBUS_CLOCK")]
            results = {{"step": int(out.name[5:]), "nice": os.nice(0), "heard": heard, "num_heard": len(heard),
                        "model": settings["model"], "device": settings["device"], "sure": True}}
            (out / "results.json").write_text(json.dumps(results))
            """
        )
    )
    script.chmod(0o755)
    monkeypatch.setattr(evaluate.sys, "executable", str(script))
    return tmp_path


def save(out: Path, step: int) -> Path:
    folder = checkpoint_at(out, step)
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    return folder


CONFIG = EvalsConfig(recipe=Path("eval.yaml"), every=5)


def test_due_steps():
    assert [done for done in range(12) if is_due(CONFIG, done)] == [5, 10]
    assert not is_due(None, 5)


def test_one_at_a_time_in_the_order_of_steps(stand_in: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "REBUS_CLOCK"):
        monkeypatch.setenv(name, "1")
    out = stand_in / "run"
    evaluations = Evaluations(CONFIG, out)
    for step in (5, 10):
        evaluations.start(step, save(out, step))
    assert evaluations.poll() == []
    assert not (out / "evals" / "step-10.log").exists(), "the second waits"
    (stand_in / "go").touch()
    found = evaluations.close()
    assert [result.step for result in found] == [5, 10]
    assert found[0].figures == {"step": 5, "nice": os.nice(0) + evaluate.NICENESS, "num_heard": 0}
    assert read_evals(out / "evals.jsonl") == found
    assert json.loads((out / "evals" / "step-5" / "results.json").read_text())["model"] == str(checkpoint_at(out, 5))
    assert list((out / "at").iterdir()) == [], "evaluated checkpoints are removed"


def test_a_failure_is_said_and_the_next_one_runs(stand_in: Path, capsys: pytest.CaptureFixture[str]):
    out = stand_in / "run"
    (stand_in / "go").touch()
    evaluations = Evaluations(CONFIG.model_copy(update={"keep": True}), out)
    for step in (13, 15):
        evaluations.start(step, save(out, step))
    assert [result.step for result in evaluations.close()] == [15]
    assert "evaluation after step 13 failed (exit status 1)" in capsys.readouterr().err.replace("\n", " ")
    assert "no such luck" in (out / "evals" / "step-13.log").read_text()
    assert {path.name for path in (out / "at").iterdir()} == {"step-13", "step-15"}


def test_a_resumed_run_evaluates_what_is_left_and_nothing_twice(stand_in: Path):
    out = stand_in / "run"
    (stand_in / "go").touch()
    before = Evaluations(CONFIG, out)
    before.start(5, save(out, 5))
    assert len(before.close()) == 1
    (stand_in / "go").unlink()
    before.start(10, save(out, 10))
    half_saved = checkpoint_at(out, 15)
    half_saved.mkdir()
    assert before.close(is_stopped=lambda: True) == [], "told to stop, it waits for nobody"
    (stand_in / "go").touch()
    after = Evaluations(CONFIG, out, first=8)
    after.start(5, save(out, 5))  # trained again, and saved again
    after.start(10, checkpoint_at(out, 10))
    assert [result.step for result in after.close()] == [10]
    assert [result.step for result in read_evals(out / "evals.jsonl")] == [5, 10]
    assert not checkpoint_at(out, 5).exists()


def test_a_whole_run_takes_up_what_was_left(stand_in: Path):
    out = stand_in / "run"
    (stand_in / "go").touch()
    finish_evaluations(CONFIG, out)
    assert not out.exists(), "nothing was left"
    save(out, 5)
    finish_evaluations(CONFIG, out)
    assert [result.step for result in read_evals(out / "evals.jsonl")] == [5]


def test_a_run_from_step_0_forgets_earlier_evaluations(stand_in: Path):
    out = stand_in / "run"
    save(out, 5)
    (out / "evals.jsonl").write_text('{"step": 10, "figures": {"choice4": 0.5}}\n')
    assert Evaluations(CONFIG, out).close() == []
    assert not (out / "evals.jsonl").exists()


def test_the_process_of_a_killed_run_is_waited_for(stand_in: Path):
    """It inherited the lock: two must not write one folder."""
    out = stand_in / "run"
    killed = Evaluations(CONFIG, out)
    killed.start(5, save(out, 5))
    orphan = killed._running
    assert orphan is not None
    after = Evaluations(CONFIG, out, first=8)
    after.start(5, checkpoint_at(out, 5))
    assert after.poll() == []
    assert after._running is None
    shutil.rmtree(out / "evals" / "step-5", ignore_errors=True)
    orphan.process.terminate()
    orphan.process.wait()
    (stand_in / "go").touch()
    assert [result.step for result in after.close()] == [5]


def labelled_shards(folder: Path) -> Path:
    """A finished shards folder of four pictures whose json says what each shows."""
    folder.mkdir()
    with tarfile.open(folder / "00000.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, colour in enumerate(("red", "green", "blue", "white")):
            members = {"png": tiny_picture(colour), "json": json.dumps({"label": f"{colour} square"}).encode()}
            for extension, content in {**members, "txt": colour.encode()}.items():
                info = tarfile.TarInfo(f"{number:09d}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    index_shards(ShardsRecipe(source="tars", input=folder, out=folder, num_workers=1))
    return folder


def test_a_real_evaluation_of_a_real_checkpoint(tmp_path: Path, tiny_checkpoint: Path):
    out = tmp_path / "run"
    shards = labelled_shards(tmp_path / "labelled")
    tree = {"out": "set/by/the/run", "model": "set/too", "shards": str(shards)}
    recipe = tmp_path / "eval.yaml"
    recipe.write_text(yaml.safe_dump({**tree, "naming": {"num_items": 1, "max_new_tokens": 2}, "limit": 4}))
    evaluations = Evaluations(EvalsConfig(recipe=recipe, every=5), out)
    shutil.copytree(tiny_checkpoint, checkpoint_at(out, 5))
    evaluations.start(5, checkpoint_at(out, 5))
    [result] = evaluations.close()
    assert result.figures["num_eval"] == 4
    assert 0 <= result.figures["choice4_right_image"] <= 1
    results = json.loads((out / "evals" / "step-5" / "results.json").read_text())
    assert result.figures["choice4_right_image"] == results["choice4_right_image"]
