"""Bad input ends in one clear message and the right exit status: 1 an error, 2 wrong usage, 130 Ctrl-C."""

import errno
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
import safetensors
import yaml

from rebus.cli import main
from rebus.errors import explain


def run(capsys, *arguments: str) -> tuple[int, str]:
    """Exit status of a verb and all that it printed."""
    with pytest.raises(SystemExit) as left:
        main(list(arguments))
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return left.value.code, " ".join((captured.out + captured.err).split())


def recipe(folder: Path, **keys: object) -> str:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({name: str(v) if isinstance(v, Path) else v for name, v in keys.items()}))
    return str(path)


def test_a_missing_recipe(capsys):
    assert run(capsys, "score", "nowhere.yaml") == (
        1,
        "error: no recipe at nowhere.yaml. Recipes that come with Rebus are under recipes/.",
    )


def test_an_unknown_key_names_the_nearest(capsys, tmp_path):
    status, message = run(capsys, "score", recipe(tmp_path, shard="x", out="y", scorers={"text_stats": {}}))
    assert status == 1
    assert "unknown key 'shard' (did you mean 'shards'?)" in message


def test_an_unknown_scorer_names_the_nearest(capsys, tmp_path):
    status, message = run(capsys, "score", recipe(tmp_path, shards="x", out="y", scorers={"text_stat": {}}))
    assert status == 1
    assert "no scorer 'text_stat' (did you mean 'text_stats'?)" in message


@pytest.mark.parametrize("arguments", [["trian"], ["train"], ["show"], ["train", "--nonsense"]])
def test_wrong_usage(capsys, arguments):
    status, message = run(capsys, *arguments)
    assert status == 2
    assert "rebus" in message


def test_a_missing_folder_and_an_empty_one(capsys, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    for shards, words in ((tmp_path / "none", "no folder at"), (empty, "holds no shard")):
        path = recipe(tmp_path, shards=shards, out=tmp_path / "out", scorers={"text_stats": {}})
        status, message = run(capsys, "score", path)
        assert status == 1
        assert words in message
        assert "rebus shards --help" in message
    assert not (tmp_path / "out").exists()


def test_shards_without_an_index_say_how_to_make_one(capsys, tmp_path):
    tarfile.open(tmp_path / "00000.tar", "w").close()
    path = recipe(tmp_path, shards=tmp_path, out=tmp_path / "out", scorers={"text_stats": {}})
    status, message = run(capsys, "score", path)
    assert status == 1
    assert "is not finished" in message


def test_a_plan_of_another_tokenizer_is_refused(capsys, tiny_way):
    tokenizer = tiny_way.language / "tokenizer.json"
    before = tokenizer.read_text()
    try:
        tokenizer.write_text(before.replace('"model"', '"model" ', 1))
        status, message = run(capsys, "train", str(tiny_way.recipe("foreign")))
    finally:
        tokenizer.write_text(before)
    assert status == 1
    assert "was made by something else" in message
    assert "Pack again" in message


def test_a_picture_that_is_text(capsys, tiny_way):
    from rebus.config import load_recipe
    from rebus.training.config import TrainRecipe
    from rebus.training.loop import run as train

    checkpoint = train(load_recipe(TrainRecipe, tiny_way.recipe("model", steps=1)))
    fake = tiny_way.folder / "picture.png"
    fake.write_text("not a picture")
    status, message = run(capsys, "chat", str(checkpoint), "--image", str(fake), "--question", "what is this?")
    assert status == 1
    assert "picture.png" in message
    assert "not a readable picture" in message


def test_a_full_disk_leaves_nothing_half_written(capsys, tmp_path, tiny_shards, monkeypatch):
    path = recipe(tmp_path, shards=tiny_shards(4), out=tmp_path / "out", scorers={"text_stats": {}})
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
    status, message = run(capsys, "score", path)
    assert status == 1
    assert message.startswith("error: No space left on device. Free some space and run the same command again")
    assert [p for p in (tmp_path / "out").rglob("*") if p.is_file()] == []
    monkeypatch.undo()
    assert run(capsys, "score", path)[0] == 0


def test_a_full_disk_seen_by_a_library_is_told_alike(capsys, tiny_way, monkeypatch):
    def full_disk(*_, **__):
        raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full_disk)
    status, message = run(capsys, "train", str(tiny_way.recipe("full", steps=1)))
    assert status == 1
    assert "error: step 1 could not be saved" in message
    assert "No space left on device" in message
    assert "Free space" in message
    assert "defect" not in message


def test_a_full_disk_is_told_alike_where_no_stage_saw_it():
    error = safetensors.SafetensorError("I/O error: No space left on device (os error 28)")
    assert explain(error).startswith("error: No space left on device. Free some space")


def test_a_defect_says_so_and_debug_shows_the_traceback(capsys, monkeypatch):
    def broken(*_, **__):
        raise KeyError("inside")

    monkeypatch.setattr("rebus.doctor.run", broken)
    assert run(capsys, "doctor")[0] == 1
    with pytest.raises(KeyError):
        main(["doctor", "--debug"])


def test_ctrl_c_ends_with_130_and_goes_on_later(tiny_way):
    recipe_path = tiny_way.recipe("stopped", steps=4000)
    process = subprocess.Popen(
        [sys.executable, "-m", "rebus", "train", str(recipe_path)],
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs this test in the background makes its children deaf to Ctrl-C; a terminal does not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    metrics, end = tiny_way.folder / "stopped" / "metrics.jsonl", time.monotonic() + 120
    while not (metrics.is_file() and metrics.stat().st_size):
        assert time.monotonic() < end, "never started to train"
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Run the same command again" in message
    assert "Traceback" not in message
    assert not (tiny_way.folder / "stopped" / "manifest.json").exists()


def test_help_needs_no_library_of_the_verbs():
    """They would double the time that `rebus --help` takes, or worse."""
    heavy = ("pydantic", "yaml", "numpy", "torch", "transformers", "PIL", "pyarrow")
    code = f"import sys, rebus.cli; print([name for name in {heavy!r} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
