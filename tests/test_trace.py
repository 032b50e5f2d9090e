"""A real tiny way, traced both ways: the steps that trace names are those whose batches held the sample."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rebus.batches.feed import open_feed
from rebus.batches.loader import iterate_batches
from rebus.batches.order import step_packs
from rebus.config import check_recipe, load_recipe
from rebus.errors import ConfigError, DataError
from rebus.fingerprint import MANIFEST
from rebus.packs.config import PackRecipe
from rebus.packs.run import run as pack
from rebus.selection.config import SelectionRecipe
from rebus.selection.resharding.config import ReshardRecipe
from rebus.selection.resharding.run import run as reshard
from rebus.selection.run import run as select
from rebus.shards.read import read_index
from rebus.trace import run, trace_sample
from rebus.trace.found import find_ways
from rebus.trace.steps import AHEAD, SKIPPED, TRAINED, describe_step
from rebus.training.config import TrainRecipe
from rebus.training.loop import run as train
from report.fake_way import draw_picture, small_pool, write_way

NUM_STEPS = 12
PER_STEP = 2
SEED = 3


@pytest.fixture(scope="module")
def trained(module_way) -> Path:
    """The folder of a way with a run of 12 steps of 2 packs over a few packs: several epochs."""
    recipe = module_way.recipe("run", steps=NUM_STEPS, packs_per_step=PER_STEP, seed=SEED)
    train(load_recipe(TrainRecipe, recipe))
    return module_way.folder


@pytest.fixture(scope="module")
def batches(trained: Path) -> dict[int, set[str]]:
    """step -> uids of its batches, by the loader itself."""
    steps = iterate_batches(
        open_feed(trained / "plan"), range(NUM_STEPS), packs_per_step=PER_STEP, seed=SEED, num_workers=0
    )
    return {step: {uid for batch in found for uid in batch.uids} for step, found in steps}


def uids_of(shards: Path) -> list[str]:
    return [uid for tar in sorted(shards.glob("*.tar")) for uid in read_index(tar)["uid"].to_pylist()]


def steps_told(folder: Path, uid: str) -> dict[int, str]:
    (found,) = trace_sample(find_ways([folder]), uid)["runs"]
    return {one["step"]: one["state"] for one in found["steps"]}


def told(names: list[str], capsys: pytest.CaptureFixture[str], **options: int) -> dict:
    capsys.readouterr()
    run(names, as_json=True, **options)
    found: dict = json.loads(capsys.readouterr().out)
    return found


def test_the_steps_told_are_those_whose_batches_held_the_sample(trained: Path, batches: dict[int, set[str]]):
    uids = uids_of(trained / "shards")
    seen = [len(found) for uid in uids if (found := steps_told(trained, uid))]
    assert len(uids) == 40
    assert max(seen) > 1  # several epochs
    for uid in uids:
        assert steps_told(trained, uid) == {step: TRAINED for step, held in batches.items() if uid in held}


def test_back_from_a_step_to_its_samples(trained: Path, batches: dict[int, set[str]]):
    ways = find_ways([trained / "run"])
    assert [artifact.folder.name for artifact in ways.artifacts] == ["run", "plan", "shards"]
    for step in range(NUM_STEPS):
        found = describe_step(ways, ways.artifacts[0], step)
        documents = [document for one in found["packs"] for document in one["documents"]]
        assert {document["uid"] for document in documents} == batches[step]
        assert len(found["packs"]) == PER_STEP
    for document in documents:
        row = read_index(Path(document["shard"])).to_pylist()[document["row"]]
        assert (row["uid"], row["key"]) == (document["uid"], document["key"])
        assert "square" in document["text"]
    with pytest.raises(DataError, match="has steps 0 to 11, no step 12"):
        describe_step(ways, ways.artifacts[0], NUM_STEPS)


@pytest.mark.parametrize("world", [1, 2])
def test_ranks_are_told_where_the_states_know_them(trained: Path, world: int, monkeypatch: pytest.MonkeyPatch):
    """The states of a run say how many ranks wrote them; here of one rank, or as if of two."""
    if world == 2:
        monkeypatch.setattr("rebus.trace.ranks._world", lambda run: 2)
    plan = open_feed(trained / "plan").plan
    options = {"num_packs": plan.num_packs, "packs_per_step": PER_STEP, "seed": SEED, "costs": plan.costs}
    ways = find_ways([trained / "run"])
    for step in range(NUM_STEPS):
        for rank in range(world):
            expected = step_packs(step, rank=rank, world=world, blocks=plan.blocks, **options)
            found = describe_step(ways, ways.artifacts[0], step)["packs"]
            mine = sorted((one["micro_batch"], one["pack"]) for one in found if one["rank"] == rank)
            assert tuple(pack for _, pack in mine) == expected


def test_a_pack_and_its_positions(trained: Path, capsys: pytest.CaptureFixture[str]):
    found = told([str(trained / "plan")], capsys, pack=1)
    ends = [0]
    for document in found["documents"]:
        assert document["first_position"] == ends[-1]
        ends.append(ends[-1] + document["num_tokens"])
    reference = open_feed(trained / "plan").plan.documents(1)
    assert [document["uid"] for document in found["documents"]] == [one.uid for one in reference]
    assert ends[-1] == sum(one.num_tokens for one in reference)
    run([str(trained / "plan")], pack=1)
    assert found["documents"][0]["text"] in capsys.readouterr().out
    with pytest.raises(DataError, match="no pack 99"):
        run([str(trained / "plan")], pack=99)


def test_names_of_a_sample(trained: Path, capsys: pytest.CaptureFixture[str]):
    uid = uids_of(trained / "shards")[17]
    by_uid = told([uid.upper(), str(trained)], capsys)
    (place,) = by_uid["places"]
    assert (place["shard"], place["row"], place["key"]) == ("00001.tar", 1, "000000017")
    assert (place["width"], place["height"], place["num_images"]) == (16, 12, 1)
    assert place["text"] == "a photo of the the the blue square"
    assert told([uid[:9], str(trained)], capsys) == by_uid
    assert told(["000000017", str(trained)], capsys) == by_uid
    (document,) = by_uid["plans"][0]["documents"]
    documents = told([str(trained / "plan")], capsys, pack=document["pack"])["documents"]
    assert documents[document["document"]]["uid"] == uid
    with pytest.raises(DataError, match="neither a key nor the beginning"):
        run(["nobody", str(trained)])
    with pytest.raises(ConfigError, match="give a sample and a folder"):
        run([str(trained)])
    with pytest.raises(ConfigError, match="asks one run"):
        run([str(trained / "shards")], step=1)
    with pytest.raises(DataError, match="no folder at"):
        run([uid, str(trained / "absent")])


def test_the_prose_says_what_the_values_say(trained: Path, capsys: pytest.CaptureFixture[str]):
    uid = uids_of(trained / "shards")[17]
    steps = steps_told(trained, uid)
    run([uid, str(trained)])
    text = capsys.readouterr().out
    assert "a photo of the the the blue square" in text
    for step in steps:
        assert f"{step} (epoch" in text
    assert "of 12" in text


def test_a_run_that_goes_on(trained: Path, module_way, batches: dict[int, set[str]]):
    """Without its manifest, and with 7 steps behind it, one of which the guard did not take."""
    train(load_recipe(TrainRecipe, module_way.recipe("going", steps=NUM_STEPS, packs_per_step=PER_STEP, seed=SEED)))
    folder = module_way.folder / "going"
    (folder / MANIFEST).unlink()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()][:7]
    rows[4]["is_skipped"] = True
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    states = {**dict.fromkeys(range(NUM_STEPS), AHEAD), **dict.fromkeys(range(7), TRAINED), 4: SKIPPED}
    for uid in sorted(batches[4])[:3]:
        expected = {step: states[step] for step, held in batches.items() if uid in held}
        assert steps_told(folder, uid) == expected
    recipe = (folder / "recipe.yaml").read_text()
    (folder / "recipe.yaml").write_text(recipe.replace("seed: 3", "seed: 4"))
    (found,) = trace_sample(find_ways([folder]), sorted(batches[4])[0])["runs"]
    assert found["steps"] == []
    assert "is another than when it began" in found["unknown"]


def test_a_run_on_another_plan_is_not_told(tiny_way, capsys: pytest.CaptureFixture[str]):
    train(load_recipe(TrainRecipe, tiny_way.recipe("run", steps=2)))
    uid = uids_of(tiny_way.folder / "shards")[0]
    before = open_feed(tiny_way.plan).plan
    assert steps_told(tiny_way.folder, uid) or len(before.bounds) > 3
    shards = tiny_way.folder / "shards"
    pack(PackRecipe(shards=[shards], tokens=before.tokens, capacity=128, out=tiny_way.plan, num_workers=1))
    (found,) = told([uid, str(tiny_way.folder)], capsys)["runs"]
    assert found["steps"] == []
    assert before.manifest.fingerprint in found["unknown"]
    with pytest.raises(DataError, match="cannot be told from another plan"):
        run([str(tiny_way.folder / "run")], step=1)


def test_selected_and_resharded(tiny_shards, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    shards = tiny_shards(40)
    rule = {"name": "short", "column": "text_chars", "max": 25}
    tree = {"shards": shards, "rules": [rule], "out": tmp_path / "selection"}
    select(check_recipe(SelectionRecipe, tree, "test"))
    copies = {"input": shards, "out": tmp_path / "copies", "subset": tmp_path / "selection", "num_workers": 1}
    reshard(check_recipe(ReshardRecipe, copies, "test"))
    uids = uids_of(shards)
    kept, dropped = (told([uid, str(tmp_path)], capsys) for uid in (uids[0], uids[6]))
    assert [Path(place["shards"]).name for place in kept["places"]] == ["copies", "shards"]
    assert [place["key"] for place in kept["places"]] == [f"{uids[0]}-0", "000000000"]
    assert told([f"{uids[0]}-0", str(tmp_path)], capsys) == kept
    assert [one["kept"] for one in kept["selections"]] == [True]
    assert len(dropped["places"]) == 1
    (found,) = dropped["selections"]
    assert (found["kept"], found["dropped_by"], found["row"]) == (False, "short", 6)
    assert found["rule"]["max"] == 25
    pairs = {"rule": ["twins"], "dropped": [uids[6]], "kept": [uids[0]], "distance": [2.0]}
    pq.write_table(pa.table(pairs), tmp_path / "selection" / "pairs.parquet")
    run([uids[6], str(tmp_path)])
    text = capsys.readouterr().out
    assert "dropped by 'short'" in text
    assert f"kept {uids[0]}, distance 2" in text


def test_scores_damage_and_what_is_unknown(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    way = write_way(tmp_path / "way", small_pool(), [("shape <3>", draw_picture(3))])
    found = told([f"{7:032x}", str(way)], capsys)
    (scores,) = found["scores"]
    assert scores["values"] == {"image_stats": {"entropy": 5.0}, "pair_similarity": {"z": pytest.approx(0.7)}}
    assert not scores["note"]
    assert [one["kept"] for one in found["selections"]] == [True]
    assert all("lacks" in one["unknown"] for one in found["plans"])  # these plans are too small to name samples
    assert {Path(one["run"]).name for one in found["runs"] if "unknown" in one} == {"x_last", "y_first"}
    swapped = told([f"{2:032x}", str(way)], capsys)["selections"][0]
    assert (swapped["dropped_by"], swapped["rule"]["min"]) == ("match", 0.35)
    undecodable = told([f"{25:032x}", str(way)], capsys)
    assert undecodable["scores"][0]["damage"][0]["reason"] == "undecodable image"
    assert undecodable["selections"][0]["dropped_by"] == "damaged"
    no_caption = told([f"{5:09d}", str(way)], capsys)
    assert no_caption["uid"] == ""
    assert no_caption["damaged"][0]["reason"] == "missing caption"
    assert no_caption["selections"][0]["dropped_by"] == "damaged"
    with pytest.raises(DataError, match="could mean 40 samples"):
        run(["0000", str(way)])
