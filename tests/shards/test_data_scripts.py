"""The shipped set and the scripts under data/: what is planted is declared and found, questions tell the truth."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from rebus.config import check_recipe
from rebus.doctor.examine import examine_shard
from rebus.errors import DataError
from rebus.records import Text, content_uid
from rebus.selection.config import SelectionRecipe
from rebus.selection.run import run as run_selection
from rebus.shards.config import ShardsRecipe
from rebus.shards.index import read_groups
from rebus.shards.read import iterate, read_index, read_metadata
from rebus.shards.run import run as run_shards

DATA = Path(__file__).parent.parent.parent / "data"
TRAIN = DATA / "emoji" / "train"


def script(name: str) -> ModuleType:
    """A script of data/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, DATA / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def index(folder: Path, **changes) -> None:
    tree = {"source": "tars", "input": str(folder), "out": str(folder), "num_workers": 1}
    run_shards(check_recipe(ShardsRecipe, tree | changes, "test"))


@pytest.fixture(scope="module")
def pool(tmp_path_factory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("demo") / "pool"
    planted = script("plant").plant(TRAIN, out, 0.2, 12, 7)
    index(out)
    return out, planted


def test_the_shipped_set_is_whole_and_split_by_concept():
    bases = {}
    for part, number in (("train", 1380), ("heldout", 219)):
        groups = [group for tar in sorted((DATA / "emoji" / part).glob("*.tar")) for group in read_groups(tar)]
        bases[part] = [json.loads(group.members["json"])["base"] for group in groups]
        assert len(groups) == number
        for group in groups[::40]:
            metadata = json.loads(group.members["json"])
            assert metadata["uid"] == content_uid(group.members["webp"], group.members["txt"])
            assert group.members["txt"].decode().startswith(metadata["label"])
    assert not set(bases["train"]) & set(bases["heldout"])
    everything = bases["train"] + bases["heldout"]
    assert len(set(everything)) == len(everything)
    tones = ("1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff")
    assert not [base for base in everything if "-" in base and any(tone in base.split("-") for tone in tones)]
    flags = [base for base in everything if "1f1e6" <= base.split("-")[0] <= "1f1ff"]  # regional indicators
    assert not flags
    findings = examine_shard(DATA / "emoji" / "heldout" / "00000.tar")
    assert (findings.num_good, findings.damaged) == (219, ())


def test_what_is_planted_is_what_is_found(pool):
    folder, planted = pool
    wanted = {(entry["shard"], entry["key"], entry["reason"]) for entry in planted["damaged"]}
    found = [damage for tar in sorted(folder.glob("*.tar")) for damage in examine_shard(tar).damaged]
    assert len(found) == len(wanted) == 12
    assert {(Path(damage.shard).name, damage.key, damage.reason) for damage in found} == wanted
    assert len({reason for _, _, reason in wanted}) >= 6
    assert len({shard for shard, _, _ in wanted}) >= 3
    assert {entry["new"] for entry in planted["damaged"]} == {True, False}


def test_exactly_the_declared_texts_are_swapped(pool):
    folder, planted = pool
    before = {group.key: group for tar in sorted(TRAIN.glob("*.tar")) for group in read_groups(tar)}
    swapped = set(planted["swapped"])
    assert len(swapped) == round(0.2 * len(before)) == 276
    for tar in sorted(folder.glob("*.tar")):
        for row, sample in iterate(tar):
            if row["key"].startswith("planted"):
                continue
            old = before[row["key"]].members
            text = next(part.text for part in sample.parts if isinstance(part, Text))
            assert (text != old["txt"].decode()) == (row["uid"] in swapped)
            assert "jpg" in old or row["uid"] == json.loads(old["json"])["uid"]


def test_planting_again_changes_nothing_and_another_seed_everything(pool, tmp_path):
    folder, planted = pool
    module = script("plant")
    stamp = (folder / "planted.json").stat().st_mtime_ns
    assert module.plant(TRAIN, folder, 0.2, 12, 7) == planted
    assert (folder / "planted.json").stat().st_mtime_ns == stamp
    module.plant(TRAIN, tmp_path / "again", 0.2, 12, 7)
    for name in ("00000.tar", "planted.json"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()
    assert module.plant(TRAIN, tmp_path / "again", 0.1, 4, 8)["swapped"] != planted["swapped"]
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").write_text("")
    with pytest.raises(DataError, match="did not make"):
        module.plant(TRAIN, tmp_path / "foreign", 0.1, 4, 8)


@pytest.fixture(scope="module")
def questions(pool, tmp_path_factory) -> tuple[list[dict], Path, Path]:
    out = tmp_path_factory.mktemp("questions")
    rules = [{"name": "long", "column": "text_chars", "min": 60}]
    tree = {"shards": str(pool[0]), "out": str(out / "selection"), "rules": rules}
    run_selection(check_recipe(SelectionRecipe, tree, "test"))
    script("questions").make_questions(pool[0], out / "selection", out / "questions", 7)
    return json.loads((out / "questions" / "questions.json").read_text()), out / "questions", out / "selection"


def test_questions_are_about_kept_samples_and_true(pool, questions):
    records, folder, selection = questions
    kept = {f"{high:016x}{low:016x}" for high, low in np.load(selection / "uids.npy").tolist()}
    labels = metadata_labels(pool[0])
    assert {record["id"] for record in records} == kept
    words = {label for uid, label in labels.items() if uid in kept}
    verdicts = []
    for record in records:
        label, turns = labels[record["id"]], record["conversations"]
        assert (folder / record["image"]).is_file()
        assert "".join(turn["value"] for turn in turns).count("<image>") == 1
        assert [turn["value"] for turn in turns[:2]] == ["<image>\nWhat is this?", label]
        question, answer = (turn["value"] for turn in turns[2:])
        if question.startswith("Which one: "):
            options = question.removeprefix("Which one: ").removesuffix("?")
            assert answer == label
            assert label in options
            assert any(word in options for word in words - {label})
        if question.startswith("Is it "):
            verdicts.append(answer)
            assert (question == f"Is it {label}?") == (answer == "Yes")
    assert set(verdicts) == {"Yes", "No"}
    names = [json.loads(line) for line in (folder / "names.jsonl").read_text().splitlines()]
    assert [(row["file"], row["caption"]) for row in names] == [(r["image"], f" {labels[r['id']]}") for r in records]


def metadata_labels(folder: Path) -> dict[str, str]:
    tars = sorted(folder.glob("*.tar"))
    rows = [(tar, row) for tar in tars for row in read_index(tar).to_pylist()]
    return {row["uid"]: read_metadata(tar, row)["label"] for tar, row in rows}


def test_questions_become_shards_and_are_the_same_again(pool, questions, tmp_path):
    records, folder, selection = questions
    script("questions").make_questions(pool[0], selection, tmp_path / "again", 7)
    assert (tmp_path / "again" / "questions.json").read_bytes() == (folder / "questions.json").read_bytes()
    table = str(folder / "questions.json")
    index(tmp_path / "shards", source="conversations", input=table, root=str(folder), samples_per_shard=500)
    samples = [sample for tar in sorted((tmp_path / "shards").glob("*.tar")) for _, sample in iterate(tar)]
    assert len(samples) == len(records)
    assert {len(sample.images) for sample in samples} == {1}


def test_pages_and_a_conversation_of_two_pictures(tmp_path):
    script("make_pages").make(TRAIN, tmp_path / "made")
    for source, name in (("pages", "pages.jsonl"), ("conversations", "conversations.json")):
        index(tmp_path / source, source=source, input=str(tmp_path / "made" / name))
    pages = [sample for _, sample in iterate(tmp_path / "pages" / "00000.tar")]
    assert [len(page.images) for page in pages] == [1, 2, 3, 4]
    ((row, sample),) = iterate(tmp_path / "conversations" / "00000.tar")
    assert (row["kind"], len(sample.images)) == ("conversation", 2)
