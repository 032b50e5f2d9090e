"""Contract 7: a bad sample costs itself alone. Twenty kinds of damage go through the whole way; each one is named with
shard, key and reason, and every clean sample is trained on, once."""

import json
from collections import Counter
from pathlib import Path

import pytest

from planted import CLEAN, CUT, DAMAGED, ODD, TWENTY, plant
from rebus.batches.feed import build_batch, open_feed
from rebus.config import load_recipe
from rebus.doctor.examine import examine
from rebus.doctor.recipe import find_recipe
from rebus.errors import DataError
from rebus.packs.config import PackRecipe
from rebus.packs.plan import open_plan
from rebus.packs.run import run as pack
from rebus.pictures.config import FixedConfig
from rebus.scores.config import ScoreRecipe
from rebus.scores.run import run as score
from rebus.selection.config import SelectionRecipe
from rebus.selection.run import run as select
from rebus.shards.config import ShardsRecipe
from rebus.shards.members import TRUNCATED_TAR
from rebus.shards.read import read_index, read_quarantine
from rebus.shards.run import run as index
from rebus.show import run as show
from rebus.tokens.config import TokensConfig
from rebus.training.config import TrainRecipe
from rebus.training.loop import run as train

SHARDS = ("00000.tar", "00001.tar")
USABLE = sorted([*CLEAN, *ODD, *CUT[:-1]])
FOUND = {(SHARDS[0], key, one.reason) for key, one in DAMAGED.items()} | {(SHARDS[1], CUT[-1], TRUNCATED_TAR)}


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    folder = plant(tmp_path / "pool")
    index(ShardsRecipe(source="tars", input=folder, out=folder, max_bad_share=0.6, num_workers=1))
    return folder


def keys_of(pool: Path, plan: Path) -> list[str]:
    """Keys of the documents that a plan trains on, as often as it does."""
    keys = [read_index(pool / name)["key"].to_pylist() for name in SHARDS]
    table = open_plan(plan).table
    return sorted(
        keys[shard][row] for shard, row in zip(table["shard"].to_pylist(), table["row"].to_pylist(), strict=True)
    )


def pack_pool(pool: Path, language: Path, selection: Path | None) -> Path:
    tokens = TokensConfig(tokenizer=language, image=FixedConfig(size=32, tokens_per_side=2))
    out = pool.parent / "plan"
    pack(PackRecipe(shards=[pool], selection=selection, tokens=tokens, capacity=96, out=out, num_workers=1))
    return out


def test_the_index_names_each_damaged_sample_and_keeps_every_other_one(pool):
    assert TWENTY == 20
    damages = [damage for name in SHARDS for damage in read_quarantine(pool / name)]
    assert {(damage.shard, damage.key, damage.reason) for damage in damages} == FOUND
    assert len(damages) == len({damage.reason for damage in damages}), "each kind once, under a name of its own"
    assert all(damage.offset >= 0 for damage in damages)
    rows = [row for name in SHARDS for row in read_index(pool / name).to_pylist()]
    assert sorted(row["key"] for row in rows) == sorted([*USABLE, "half"])
    assert {row["key"]: row["notes"] for row in rows if row["notes"]} == {key: one.reason for key, one in ODD.items()}


def test_the_doctor_finds_all_of_it_ahead_of_time_and_points_at_it(tmp_path, capsys):
    pool = plant(tmp_path / "pool")
    findings = examine(find_recipe(pool, num_workers=1))
    seen = {(Path(one.shard).name, one.key, one.reason) for one in findings.damaged}
    assert seen == FOUND | {(SHARDS[0], "half", "undecodable image")}
    assert findings.odd == Counter(one.reason for one in ODD.values())
    assert findings.num_good == len(USABLE)
    for one in (*findings.damaged, *findings.noted):
        _, _, shard, option, value = one.pointer.split()
        show(Path(shard), **{"sample": value} if option == "--sample" else {"at": int(value)})
        assert one.reason in capsys.readouterr().out, one.pointer


def test_scoring_finds_what_only_decoding_shows_and_selection_drops_it(pool, speaking_folder):
    out = pool.parent
    score(ScoreRecipe(shards=pool, out=out / "scores", scorers={"image_stats": {}}, max_bad_share=0.2))
    (line,) = (out / "scores" / "quarantine" / "00000.jsonl").read_text().splitlines()
    assert {name: json.loads(line)[name] for name in ("key", "reason")} == {
        "key": "half",
        "reason": "undecodable image",
    }
    rules = [{"name": "any size", "column": "image_stats.width", "min": 1}]
    tree = {"shards": pool, "scores": out / "scores", "rules": rules, "out": out / "selection"}
    select(SelectionRecipe.model_validate(tree))
    plan = pack_pool(pool, speaking_folder, out / "selection")
    assert keys_of(pool, plan) == USABLE


def test_training_goes_to_the_end_on_all_that_is_whole_and_names_the_rest(pool, speaking_folder, tiny_way):
    plan = pack_pool(pool, speaking_folder, None)
    assert keys_of(pool, plan) == sorted([*USABLE, "half"])
    feed = open_feed(plan)
    batches = [build_batch(feed, (number,)) for number in range(feed.num_packs)]
    assert [damage.key for batch in batches for damage in batch.damage] == ["half"]
    recipe = tiny_way.recipe("run", plan=str(plan), epochs=1, steps=None, packs_per_step=1)
    checkpoint = train(load_recipe(TrainRecipe, recipe))
    steps = [json.loads(line) for line in (checkpoint / "metrics.jsonl").read_text().splitlines()]
    assert len(steps) == feed.num_packs
    lines = (checkpoint / "quarantine.jsonl").read_text().splitlines()
    assert {(json.loads(line)["key"], json.loads(line)["reason"]) for line in lines} == {("half", "undecodable image")}


def test_too_many_bad_samples_stop_the_stage_with_a_table_of_reasons(pool):
    recipe = ScoreRecipe(shards=pool, out=pool.parent / "strict", scorers={"image_stats": {}}, max_bad_share=0.01)
    with pytest.raises(DataError, match=rf"(?s)1 of {len(USABLE) + 1} samples.*1  undecodable image"):
        score(recipe)
    assert not (pool.parent / "strict" / "manifest.json").exists()
