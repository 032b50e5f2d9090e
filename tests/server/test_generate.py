"""`rebus generate` as people type it: one question, several pictures, a video, a file of questions, a benchmark."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from test_inputs import write_video

from rebus.cli import main
from rebus.records import Text
from rebus.server.benchmark import Timing, measure, spread
from rebus.server.engine import Engine, Request


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    PIL.Image.new("RGB", (16, 12), "red").save(tmp_path / "red.png")
    return tmp_path / "red.png"


@pytest.fixture
def loaded(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """The verb finds the model already loaded."""
    monkeypatch.setattr("rebus.server.generate.load", lambda model, **_: engine)
    return engine


def typed(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["generate", "model", *map(str, arguments)])
    return int(caught.value.code or 0)


def test_a_real_process_answers(tiny_checkpoint: Path, picture: Path, engine: Engine):
    expected = engine.generate("What is this?", [picture], max_new_tokens=6, temperature=0.7, seed=4)
    command = [sys.executable, "-m", "rebus", "generate", str(tiny_checkpoint), "--image", str(picture)]
    options = ["--question", "What is this?", "--max-tokens", "6", "--temperature", "0.7", "--seed", "4", "--json"]
    result = subprocess.run([*command, *options], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert (answer["text"], tuple(answer["ids"])) == (expected.text, expected.ids)


def test_pictures_and_a_video_in_one_question(
    loaded: Engine, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    video = write_video(tmp_path / "v.mp4")
    shown = ["--image", picture, "--image", picture, "--video", video, "--num-frames", 4, "--system", "Be brief."]
    assert typed(*shown, "--question", "What?", "--max-tokens", 3, "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    asked = loaded.request("What?", [picture] * 2, [(str(video), {"nframes": 4})], system="Be brief.")
    _, encoded = loaded.prompt(asked)
    assert len(encoded.images) == 6  # a square a frame
    assert answer["num_prompt_tokens"] == encoded.num_tokens


def test_the_answer_streams_to_the_terminal(loaded: Engine, picture: Path, capfd: pytest.CaptureFixture):
    whole = loaded.generate("What is this?", [picture], max_new_tokens=16).text
    stop = whole[5:8]
    arguments = ["--image", picture, "--question", "What is this?", "--max-tokens", 16, "--stop", stop]
    assert typed(*arguments) == 0
    assert capfd.readouterr().out == whole[: whole.index(stop)] + "\n"


def test_pixel_limits_hold_for_frames_too(loaded: Engine, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    asked: list[Any] = []
    monkeypatch.setattr(
        Engine, "request", lambda self, *given, **_: asked.append(given) or Request((Text("x", "user"),))
    )
    assert typed("--video", "v.mp4", "--fps", 1, "--max-pixels", 9000, "--question", "?", "--max-tokens", 1) == 0
    assert asked == [("?", (), [("v.mp4", {"fps": 1.0, "max_pixels": 9000})])]


def rows_of(path: Path) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in map(json.loads, path.read_text().splitlines())}


@pytest.fixture
def batch(tmp_path: Path, picture: Path) -> Path:
    """Seven lines, three of them bad; picture paths are relative to the file."""
    lines = [
        json.dumps({"id": "a", "question": "What is this?", "image": "red.png"}),
        "{torn",
        json.dumps({"id": 7, "question": "And the table?"}),
        json.dumps({"id": "lost", "question": "What?", "images": ["red.png", "nowhere.png"]}),
        json.dumps({"messages": [{"role": "user", "content": [{"type": "image", "image": "red.png"}]}]}),
        "",
        json.dumps({"id": "a", "question": "The same id"}),
        json.dumps({"id": "b", "question": "the photo", "system": "Be brief."}),
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_batch_is_answered_line_by_line_and_goes_on(
    loaded: Engine, batch: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    out = tmp_path / "answers" / "out.jsonl"
    command = ["--batch", batch, "--out", out, "--max-tokens", 5, "--batch-size", 3]
    assert typed(*command) == 1  # bad lines
    captured = capsys.readouterr()
    rows = rows_of(out)
    assert set(rows) == {"a", "7", "5", "b"}
    assert rows["a"]["text"] == loaded.generate("What is this?", [picture], max_new_tokens=5).text
    assert rows["b"]["text"] == loaded.generate("the photo", system="Be brief.", max_new_tokens=5).text
    for message in ("line 2: no JSON", "line 4: no file at", "line 7: the id 'a' stands on an earlier line"):
        assert message in captured.err
    assert "answered now" in captured.out

    kept = out.read_text().splitlines(keepends=True)
    out.write_text("".join(kept[:2]) + kept[2][:9])  # killed in the middle of a line
    assert typed(*command, "--json") == 1
    tally = json.loads(capsys.readouterr().out)
    assert (tally["num_lines"], tally["num_before"], tally["num_answered"]) == (7, 2, 2)
    assert [line for line, _ in tally["bad"]] == [2, 4, 7]
    again = rows_of(out)
    assert {name: row["text"] for name, row in again.items()} == {name: row["text"] for name, row in rows.items()}
    assert len(out.read_text().splitlines()) == 4


@pytest.mark.parametrize("notes", ["my notes\n", "my notes", '{"id": 1}\n', '{"id": "a", "text": ""}\nmy notes'])
def test_a_file_of_something_else_is_left_as_it_is(loaded: Engine, batch: Path, tmp_path: Path, capsys, notes: str):
    (tmp_path / "notes.txt").write_text(notes)
    assert typed("--batch", batch, "--out", tmp_path / "notes.txt") == 1
    assert "is not a file of answers" in capsys.readouterr().err
    assert (tmp_path / "notes.txt").read_text() == notes


def test_questions_are_not_answered_into_their_own_file(loaded: Engine, batch: Path, capsys):
    before = batch.read_text()
    assert typed("--batch", batch, "--out", batch) == 1
    assert "holds the questions" in capsys.readouterr().err
    assert batch.read_text() == before


def test_lines_that_are_no_text_cost_themselves(loaded: Engine, tmp_path: Path, capsys):
    lines = [
        '{"question": null}',
        '{"id": "\\ud800", "question": "x"}',
        "[" * 100_000,
        '{"question": "x", "system": 3}',
    ]
    path, out = tmp_path / "questions.jsonl", tmp_path / "out.jsonl"
    path.write_text('\ufeff{"id": "well", "question": "x"}\n' + "\n".join(lines), encoding="utf-8")  # a mark of Windows
    assert typed("--batch", path, "--out", out, "--max-tokens", 2) == 1
    assert set(rows_of(out)) == {"well"}
    assert "`question` is no text but null" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing is asked"),
        (["--batch", "x.jsonl"], "go together"),
        (["--batch", "x.jsonl", "--out", "y.jsonl", "--question", "What?"], "brings its own questions"),
        (["--question", "x", "--top-p", "2"], "top_p is 2.0"),
    ],
)
def test_a_command_that_makes_no_sense_is_one_message(arguments: list, message: str, capsys: pytest.CaptureFixture):
    assert typed(*arguments) == 1
    assert message in capsys.readouterr().err


def test_a_benchmark_reports_every_timed_run(loaded: Engine, picture: Path, capsys: pytest.CaptureFixture):
    assert typed("--image", picture, "--question", "What?", "--max-tokens", 6, "--benchmark", 3, "--json") == 0
    figures = json.loads(capsys.readouterr().out)
    runs = figures["runs"]
    assert (figures["num_runs"], len(runs), figures["num_warm_ups"]) == (3, 3, 2)
    assert figures["total_seconds"]["mean"] == pytest.approx(sum(run["total"] for run in runs) / 3)
    assert figures["total_seconds"]["max"] == max(run["total"] for run in runs)
    assert all(0 < run["prepare"] < run["first_token"] < run["total"] for run in runs)
    _, encoded = loaded.prompt(loaded.request("What?", [picture]))
    assert {run["num_prompt_tokens"] for run in runs} == {encoded.num_tokens}
    assert figures["memory_mb"]["max_resident"] >= figures["memory_mb"]["resident"] > 50
    assert typed("--question", "What?", "--max-tokens", 2, "--benchmark", 1) == 0
    assert "prompt_tokens_per_second" in capsys.readouterr().out
    assert typed("--question", "What?", "--max-tokens", 1, "--benchmark", 1, "--json") == 0
    assert "new_tokens_per_second" not in json.loads(capsys.readouterr().out)  # one token has no rate


def test_rates_are_counted_over_what_they_are_of():
    timing = Timing(prepare=1.0, first_token=3.0, total=8.0, num_prompt_tokens=40, num_new_tokens=11)
    assert (timing.prompt_tokens_per_second, timing.new_tokens_per_second) == (20.0, 2.0)
    assert spread([1.0, 2.0, 3.0]) == {"mean": 2.0, "std": 1.0, "min": 1.0, "max": 3.0}


def test_warm_up_is_not_timed(engine: Engine, monkeypatch: pytest.MonkeyPatch):
    times = iter([Timing(0, 50, 100, 4, 2)] * 2 + [Timing(0, 1, 2, 4, 2)] * 9)
    monkeypatch.setattr("rebus.server.benchmark.run_once", lambda *_: next(times))
    figures = measure(engine, engine.request("x"), 9)
    assert figures["total_seconds"] == {"mean": 2, "std": 0, "min": 2, "max": 2}
