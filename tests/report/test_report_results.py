"""results.json against numbers that were worked out by hand."""

import json
import shutil
from pathlib import Path

import pytest

from rebus.errors import DataError
from rebus.fingerprint import MANIFEST, Manifest, write_manifest
from rebus.report import run
from rebus.report.gather import find_way
from rebus.report.results import checkpoint_of, evenly, gather_results, headline_eval


def test_numbers_of_the_synthetic_run(way_folder: Path):
    results = gather_results(find_way(way_folder))
    assert results["planted_swaps"] == 4
    assert results["swaps_removed"] == 3 / 4  # z is -1.0, -0.5, -0.2 and 5.0; the rule keeps from 0.35 on
    assert results["clean_removed"] == pytest.approx(3 / 34)  # 0.0, 0.1 and 0.3; 0.2 is a swapped one
    assert (results["damaged_planted"], results["damaged_found"]) == (2, 2)
    assert (results["num_kept"], results["num_dropped"]) == (32, 8)
    assert results["pack_fill"] == pytest.approx(285 / 300)
    assert results["pack_fill_plan_two"] == pytest.approx(196 / 200)
    assert results["tokens_trained"] == 200 * 60 + 200 * 40
    assert results["seconds_total"] == 12.5 + 60.0 + 30.5
    assert results["peak_rss_gb"] == 2.5
    assert results["num_eval"] == 8
    assert results["choice4_right_image"] == 0.75
    assert results["choice4_right_image_ci95"] == [0.65, 0.85]
    assert (results["choice4_wrong_image"], results["choice4_no_image"]) == (0.25, 0.2)


def test_damage_that_nothing_found_is_not_counted(way_folder: Path):
    for path in (way_folder / "a_tables" / "quarantine").glob("*.jsonl"):
        path.write_text("")
    assert gather_results(find_way(way_folder))["damaged_found"] == 1


def test_the_first_of_two_samples_with_one_key_is_clean(way_folder: Path):
    path = way_folder / "b_pool" / "planted.json"
    body = json.loads(path.read_text())
    body["damaged"].append({"shard": "00000.tar", "key": "000000000", "reason": "duplicate key"})
    path.write_text(json.dumps(body))
    results = gather_results(find_way(way_folder))
    assert results["clean_removed"] == pytest.approx(3 / 34)
    assert (results["damaged_planted"], results["damaged_found"]) == (3, 2)


def test_artifacts_are_ordered_by_what_they_stand_on(way_folder: Path):
    names = [artifact.name for artifact in find_way(way_folder).artifacts]
    assert names == ["b_pool", "a_tables", "z_kept", "plan_one", "plan_two", "y_first", "x_last", "c_judged"]


def test_an_artifact_of_inputs_that_are_gone_is_told(way_folder: Path, capsys: pytest.CaptureFixture[str]):
    way = find_way(way_folder)
    assert not any(way.strangers_of(artifact) for artifact in way.artifacts)  # the held-out shards stand elsewhere
    shutil.rmtree(way_folder / "plan_two")
    run(way_folder)
    assert "x_last was made of another plan than there is now" in " ".join(capsys.readouterr().err.split())


def test_chat_uses_the_checkpoint_that_was_evaluated(way_folder: Path):
    way = find_way(way_folder)
    found = checkpoint_of(way, headline_eval(way))
    assert found is not None
    assert found.name == "x_last"


def test_without_a_clock_time_is_unknown_not_zero(way_folder: Path):
    (way_folder / "clock.jsonl").unlink()
    results = gather_results(find_way(way_folder))
    assert results["seconds_total"] is None
    assert results["peak_rss_gb"] is None


def test_run_writes_the_same_results_twice(way_folder: Path, capsys: pytest.CaptureFixture[str]):
    page = run(way_folder)
    first = (way_folder / "results.json").read_bytes(), page.read_bytes()
    run(way_folder)
    assert ((way_folder / "results.json").read_bytes(), page.read_bytes()) == first
    assert json.loads(first[0])["planted_swaps"] == 4
    printed = capsys.readouterr().out
    assert f"rebus chat {way_folder / 'x_last'} --image {way_folder / 'example.png'}" in printed
    assert (way_folder / "example.png").read_bytes().startswith(b"\x89PNG")
    assert not list(way_folder.glob(".*.tmp"))


def test_a_folder_without_artifacts_says_what_is_missing(tmp_path: Path):
    (tmp_path / "notes").mkdir()
    with pytest.raises(DataError, match=r"holds no artifact: none of its 1 subfolders has a manifest\.json"):
        run(tmp_path)
    with pytest.raises(DataError, match="no folder at"):
        run(tmp_path / "nowhere")


def test_a_broken_clock_is_an_error_with_its_path(way_folder: Path):
    (way_folder / "clock.jsonl").write_text('{"name": "score"}\n')
    with pytest.raises(DataError, match=r"clock\.jsonl: a line lacks 'seconds'"):
        run(way_folder)


def test_unfinished_artifacts_are_left_out(way_folder: Path):
    shutil.rmtree(way_folder / "c_judged")
    (way_folder / "x_last" / "manifest.json").unlink()
    results = gather_results(find_way(way_folder))
    assert results["tokens_trained"] == 200 * 60
    assert "choice4_right_image" not in results


def test_evenly_takes_both_ends():
    assert evenly(range(11), 3) == [0, 5, 10]
    assert evenly([1, 2], 3) == [1, 2]


def test_what_only_a_filter_network_was_trained_on_is_not_the_selection_of_the_run(way_folder: Path):
    before = gather_results(find_way(way_folder))
    shutil.copytree(way_folder / "z_kept", way_folder / "zz_trusted")
    body = json.loads((way_folder / "zz_trusted" / MANIFEST).read_text())
    trusted = Manifest("selection", {"rules": ["another"]}, body["inputs"], {"num_kept": 1, "num_dropped": 39})
    write_manifest(way_folder / "zz_trusted", trusted)
    (way_folder / "filter").mkdir()
    inputs = {"trusted.selection": trusted.fingerprint}
    write_manifest(way_folder / "filter", Manifest("weights", {"kind": "dual_encoder"}, inputs))
    assert gather_results(find_way(way_folder)) == before
