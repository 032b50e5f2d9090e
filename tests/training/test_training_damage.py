"""The damage budget of a run: counted over ranks and resumes, each damaged document listed once."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from rebus.batches.batch import Batch
from rebus.config import load_recipe
from rebus.errors import DataError
from rebus.mesh import Mesh
from rebus.packs.config import PackRecipe
from rebus.packs.run import run as pack
from rebus.pictures.config import FixedConfig
from rebus.records import Damage
from rebus.tokens.config import TokensConfig
from rebus.training import loop
from rebus.training.config import TrainRecipe
from rebus.training.damage import Tally, damages_of, open_quarantine, stop_above
from rebus.training.loop import run
from rebus.training.metrics import read_rows
from tiny_samples import TinySample, tiny_picture, write_shards


def damage(key: str, reason: str = "undecodable image") -> Damage:
    return Damage("00000.tar", key, 0, reason)


def test_counting_adds_up_by_reason():
    tally = Tally().plus(3, [damage("a"), damage("b", "too long")]).plus(2, [damage("c")])
    assert tally == Tally(8, {"undecodable image": 2, "too long": 1})


@pytest.mark.parametrize(
    ("tally", "stops"), [((99, 99), False), ((100, 5), False), ((100, 6), True), ((1000, 51), True)]
)
def test_the_share_is_judged_from_a_hundred_documents_on(tally: tuple[int, int], stops: bool, tmp_path: Path):
    counted = Tally(tally[0], {"undecodable image": tally[1] - 1, "too long": 1})
    if not stops:
        return stop_above(0.05, counted, tmp_path)
    with pytest.raises(DataError, match=r"(?s)max_bad_share allows 5.0%:\n +\d+  undecodable image\n +1  too long\n"):
        stop_above(0.05, counted, tmp_path)


def test_what_stands_for_an_empty_batch_is_no_document():
    blank = torch.zeros(1, dtype=torch.int64)
    batch = Batch(*[blank] * 7, uids=("", "a" * 32), keys=("", "k"), damage=(damage("x"),))
    assert damages_of([batch], Mesh()) == [damage("x")]


def test_a_damaged_document_is_listed_once_over_resumes(tmp_path: Path):
    path = tmp_path / "quarantine.jsonl"
    first = open_quarantine(path)
    first.add([damage("a"), damage("a"), damage("b")])
    first.add([damage("b")])
    with open(path, "a", encoding="utf-8") as file:
        file.write('{"shard": "0000')  # a kill in the middle of a line
    second = open_quarantine(path)
    second.add([damage("b"), damage("line\u2028break"), damage("a")])
    assert [json.loads(line)["key"] for line in path.read_text().split("\n") if line] == ["a", "b", "line\u2028break"]


@pytest.fixture
def damaged_plan(tmp_path: Path, speaking_folder: Path) -> Path:
    """Every tenth of 120 pictures is cut off behind its header."""
    noise = np.random.default_rng(0).bytes(64)
    pictures = [tiny_picture() if i % 10 else tiny_picture(size=(200, 200))[:60] + noise for i in range(120)]
    shards = write_shards(
        tmp_path / "bad_shards", [TinySample(f"a photo {i}", data) for i, data in enumerate(pictures)]
    )
    tokens = TokensConfig(tokenizer=speaking_folder, image=FixedConfig(size=32, tokens_per_side=2))
    pack(PackRecipe(shards=[shards], tokens=tokens, capacity=96, out=tmp_path / "bad_plan", num_workers=1))
    return tmp_path / "bad_plan"


def test_too_much_damage_stops_a_run_and_a_larger_budget_lets_it_go_on(tiny_way, damaged_plan):
    settings = {"plan": str(damaged_plan), "epochs": 2, "steps": None, "packs_per_step": 1, "save_every": 4}
    recipe = load_recipe(TrainRecipe, tiny_way.recipe("bad", **settings))
    with pytest.raises(DataError, match=r"(?s)1\d of the 1\d\d documents met so far.*undecodable image.*rebus doctor"):
        run(recipe)
    before = [path.name for path in (recipe.out / "states").iterdir()]
    assert before, "stopped on the way, not at the start"
    run(load_recipe(TrainRecipe, tiny_way.recipe("bad", **settings, max_bad_share=0.2)))
    lines = [json.loads(line) for line in (recipe.out / "quarantine.jsonl").read_text().splitlines()]
    assert sorted(line["key"] for line in lines) == [f"{i:09d}" for i in range(0, 120, 10)], "two epochs, each once"
    calm = load_recipe(TrainRecipe, tiny_way.recipe("calm", **settings, max_bad_share=0.2))
    run(calm)
    assert tally_of(recipe) == tally_of(calm)
    assert tally_of(calm)["num_documents"] >= 240


def tally_of(recipe: TrainRecipe) -> dict:
    """Of the last state."""
    return json.loads((max((recipe.out / "states").iterdir()) / "meta.json").read_text())["tally"]


def one_a_pack(folder: Path, language: Path, broken: set[int], number: int = 8) -> Path:
    """A plan of so many documents, each in a pack of its own; the pictures of some are cut off behind their header."""
    noise = np.random.default_rng(0).bytes(64)
    whole, cut_off = tiny_picture(), tiny_picture(size=(200, 200))[:60] + noise
    samples = [TinySample(f"a photo {i}", cut_off if i in broken else whole) for i in range(number)]
    shards = write_shards(folder / "single_shards", samples)
    tokens = TokensConfig(tokenizer=language, image=FixedConfig(size=32, tokens_per_side=2))
    pack(PackRecipe(shards=[shards], tokens=tokens, capacity=12, out=folder / "single", num_workers=1))
    return folder / "single"


def test_a_step_of_nothing_but_damage_trains_nothing_and_the_run_goes_on(tiny_way, tmp_path: Path, monkeypatch):
    plan = one_a_pack(tmp_path, tiny_way.language, {0, 3, 4})
    settings = {"plan": str(plan), "epochs": 2, "steps": None, "packs_per_step": 1, "save_every": 1, "num_workers": 0}
    calm = run(load_recipe(TrainRecipe, tiny_way.recipe("calm", **settings)))
    assert len(read_rows(calm / "metrics.jsonl")) == 2 * 5
    assert len((calm / "quarantine.jsonl").read_text().splitlines()) == 3
    recipe = load_recipe(TrainRecipe, tiny_way.recipe("stopped", **settings))
    write = loop.save
    for stop in range(1, 16):  # before the first update, and behind each step

        def save(this, done, progress, stop=stop):
            write(this, done, progress)
            if done == stop:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(loop, "save", save)
            with pytest.raises(KeyboardInterrupt):
                run(recipe)
    assert [(row.step, row.loss) for row in read_rows(run(recipe) / "metrics.jsonl")] == [
        (row.step, row.loss) for row in read_rows(calm / "metrics.jsonl")
    ]
    assert tally_of(recipe)["num_documents"] == 16


def test_a_run_without_one_whole_document_makes_no_checkpoint(tiny_way, tmp_path: Path):
    plan = one_a_pack(tmp_path, tiny_way.language, {0, 1}, number=2)
    recipe = load_recipe(TrainRecipe, tiny_way.recipe("nothing", plan=str(plan), steps=2, packs_per_step=1))
    with pytest.raises(DataError, match="nothing was trained: every document is damaged"):
        run(recipe)
    assert not (recipe.out / "manifest.json").exists()


def test_documents_of_one_name_in_two_folders_are_both_listed(tiny_way, tmp_path: Path):
    cut_off = tiny_picture(size=(200, 200))[:60] + np.random.default_rng(0).bytes(64)
    samples = [TinySample("a photo", cut_off), TinySample("a photo", tiny_picture())]
    folders = [write_shards(tmp_path / name, samples) for name in ("one", "two")]
    tokens = TokensConfig(tokenizer=tiny_way.language, image=FixedConfig(size=32, tokens_per_side=2))
    pack(PackRecipe(shards=folders, tokens=tokens, capacity=96, out=tmp_path / "both", num_workers=1))
    recipe = load_recipe(TrainRecipe, tiny_way.recipe("run", plan=str(tmp_path / "both"), steps=1, packs_per_step=1))
    run(recipe)
    lines = [json.loads(line) for line in (recipe.out / "quarantine.jsonl").read_text().splitlines()]
    assert sorted(line["shard"] for line in lines) == [str(folder / "00000.tar") for folder in folders]
