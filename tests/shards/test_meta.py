"""PaddleMIX's list of data sets: a shards folder each, and a mixture that `rebus pack` reads."""

import json
from pathlib import Path

import pytest
from test_shards_tars import picture

from rebus.config import check_recipe
from rebus.errors import DataError
from rebus.fingerprint import read_manifest
from rebus.shards.config import ShardsRecipe
from rebus.shards.read import iterate
from rebus.shards.run import run
from rebus.shards.sources.meta import read_meta


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    raw = tmp_path / "raw"
    (raw / "pictures").mkdir(parents=True)
    (raw / "pictures" / "0.png").write_bytes(picture((2, 4)))
    row = {"messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "This."}]}
    (raw / "first.json").write_text(json.dumps([{**row, "images": ["0.png"]}] * 3))
    (raw / "second.jsonl").write_text("".join(json.dumps({**row, "id": number}) + "\n" for number in range(4)) + "{\n")
    return tmp_path


def listed(folder: Path, **entries) -> Path:
    (folder / "raw" / "meta.json").write_text(json.dumps(entries))
    return folder / "raw" / "meta.json"


def recipe(folder: Path, **changes) -> ShardsRecipe:
    tree = {
        "source": "meta",
        "input": str(folder / "raw" / "meta.json"),
        "out": str(folder / "out"),
        "max_bad_share": 0.3,
        "num_workers": 1,
    }
    return check_recipe(ShardsRecipe, tree | changes, "test")


ENTRIES = {
    "chart-qa": {"annotation": "first.json", "repeat_time": 2.5, "root": "pictures"},
    "text_only": {"file_name": "second.jsonl", "repeat_time": 0.1, "data_augment": False},
}


@pytest.mark.parametrize("link", [False, True])
def test_each_data_set_becomes_a_folder_of_the_mixture(folder: Path, link: bool):
    listed(folder, **ENTRIES)
    summary = run(recipe(folder, link=link))
    assert (summary.num_samples, summary.num_shards, summary.num_damaged) == (7, 2, 1)
    assert summary.reasons == {"bad JSON": 1}
    assert json.loads((folder / "out" / "mixture.json").read_text()) == {
        "shards": [
            {"folder": str(folder / "out" / "chart-qa"), "repeat": 2.5},
            {"folder": str(folder / "out" / "text_only"), "repeat": 0.1},
        ]
    }
    suffix = "link" if link else "tar"
    found = [sample for _, sample in iterate(folder / "out" / "chart-qa" / f"00000.{suffix}")]
    assert [[image.width for image in sample.images] for sample in found] == [[2]] * 3
    assert read_manifest(folder / "out" / "text_only", "shards").facts["num_samples"] == 4
    stamp = (folder / "out" / "chart-qa" / "manifest.json").stat().st_mtime_ns
    assert run(recipe(folder, link=link)).num_samples == 7
    assert (folder / "out" / "chart-qa" / "manifest.json").stat().st_mtime_ns == stamp


def test_paths_start_at_the_list_or_else_at_the_working_directory(folder: Path, monkeypatch):
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "third.json").write_text("[]")
    monkeypatch.chdir(folder)
    path = listed(folder, a={"annotation": "first.json"}, b={"annotation": "elsewhere/third.json", "root": "raw"})
    first, third = read_meta(path)
    assert (first.annotation, first.repeat, first.root) == (folder / "raw" / "first.json", 1, None)
    assert (third.annotation, third.root) == (Path("elsewhere/third.json"), Path("raw"))


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ({"a": {"repeat_time": 1}}, "`annotation`"),
        ({"a": {"annotation": "absent.json"}}, "there is neither"),
        ({"a": {"annotation": "first.json", "repeat_time": 0}}, "repeat_time = 0"),
        ({"a": {"annotation": "first.json", "repeat_time": "2"}}, "repeat_time = '2'"),
        ({"../a": {"annotation": "first.json"}}, "becomes a folder"),
        ({"a": "first.json"}, "not an object"),
        ({"a": {"annotation": "first.json"}, "A": {"annotation": "first.json"}}, "case alone"),
        ({}, "must hold an object"),
    ],
)
def test_lists_that_cannot_be_used_say_why(folder: Path, entries: dict, why: str):
    with pytest.raises(DataError, match=why):
        read_meta(listed(folder, **entries))


def test_an_artifact_is_not_written_into(folder: Path):
    listed(folder, **ENTRIES)
    run(recipe(folder))
    with pytest.raises(DataError, match="an artifact itself"):
        run(recipe(folder, out=str(folder / "out" / "chart-qa")))
