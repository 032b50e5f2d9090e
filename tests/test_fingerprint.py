"""Artifacts know themselves, and a half-made one is never taken for whole."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from rebus.errors import DataError, StrangerError
from rebus.fingerprint import (
    Manifest,
    discard,
    is_current,
    prepare_out,
    read_manifest,
    refuse_stranger,
    write_atomically,
    write_manifest,
)

PLAN = Manifest("plan", {"capacity": 8}, {"shards": "abc"}, {"num_packs": 2})


def test_a_manifest_comes_back_as_it_was(tmp_path):
    write_manifest(tmp_path, PLAN)
    assert read_manifest(tmp_path, "plan") == PLAN
    assert is_current(tmp_path, PLAN)


def test_facts_do_not_change_identity_but_making_does():
    assert Manifest("plan", {"capacity": 8}, {"shards": "abc"}).fingerprint == PLAN.fingerprint
    assert Manifest("plan", {"capacity": 9}, {"shards": "abc"}).fingerprint != PLAN.fingerprint
    assert Manifest("plan", {"capacity": 8}, {"shards": "abd"}).fingerprint != PLAN.fingerprint


def test_reading_says_what_is_wrong(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_manifest(tmp_path / "none", "plan")
    with pytest.raises(DataError, match="is not finished"):
        read_manifest(tmp_path, "plan")
    write_manifest(tmp_path, PLAN)
    with pytest.raises(StrangerError, match="holds plan, but scores is wanted"):
        read_manifest(tmp_path, "scores")
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(DataError, match="is not a manifest"):
        read_manifest(tmp_path, "plan")


def test_an_interrupted_build_goes_on_and_a_different_one_starts_anew(tmp_path):
    out = tmp_path / "out"
    prepare_out(out, PLAN)
    (out / "part").write_text("half")
    prepare_out(out, PLAN)
    assert (out / "part").exists()
    prepare_out(out, Manifest("plan", {"capacity": 9}))
    assert not (out / "part").exists()


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(DataError, match="files that Rebus did not make"):
        prepare_out(tmp_path, PLAN)
    assert (tmp_path / "thesis.txt").exists()


def test_files_of_others_are_not_swept(tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / ".unsaved.tmp").write_text("precious")
    with pytest.raises(DataError, match="did not make"):
        prepare_out(tmp_path, Manifest("shards", {}))
    assert (tmp_path / "theirs" / ".unsaved.tmp").read_text() == "precious"


def test_a_build_killed_before_its_mark_begins_anew(tmp_path):
    (tmp_path / "..building.4711.tmp").write_text("half")
    prepare_out(tmp_path, PLAN)
    assert [path.name for path in tmp_path.iterdir()] == [".building"]


def test_discard_leaves_nothing_that_looks_like_an_artifact(tmp_path):
    folder, trash = tmp_path / "plan", tmp_path / ".plan.trash"
    trash.mkdir()  # what a kill in the middle of an earlier discard left
    write_manifest(folder, PLAN)
    discard(folder)
    assert not folder.exists()
    assert not trash.exists()


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, "old")

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_strangers_are_told_apart_by_every_entry(tmp_path):
    with pytest.raises(StrangerError, match=r"(?s)capacity: expected 8, found 9.*Pack it again"):
        refuse_stranger(tmp_path, {"capacity": 8, "kind": "x"}, {"capacity": 9, "kind": "x"}, "Pack it again.")
    refuse_stranger(tmp_path, {"capacity": 8}, {"capacity": 8, "more": 1}, "")


def test_threads_may_write_the_same_file(tmp_path):
    """As where two pictures of a plan are the same and their features are cached side by side."""
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: write_atomically(tmp_path / "file", "same"), range(100)))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
