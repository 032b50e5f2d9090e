"""`hub_folder: true`: the run's checkpoint again, as plain transformers reads it."""

import shutil
from pathlib import Path

import pytest
import torch
import transformers

from rebus.checkpoints.load import load_model
from rebus.config import load_recipe
from rebus.errors import ConfigError
from rebus.packs.config import PackRecipe
from rebus.packs.run import run as pack
from rebus.tokens.config import TokensConfig
from rebus.training.config import TrainRecipe
from rebus.training.loop import run
from tiny_hub import save_family
from tiny_way import TinyWay


@pytest.fixture
def recipe(tiny_way: TinyWay, tmp_path: Path, tiny_tokenizer_folder: Path) -> TrainRecipe:
    """LLaVA-1.5's shape with SigLIP, from a hub folder, connector and adapters trained."""
    hub = save_family("llava_siglip", tmp_path / "hub", tiny_tokenizer_folder)
    _, tokens = load_model(hub)
    rules = TokensConfig(**{**tokens, "template": "plain"})
    pack(PackRecipe(shards=[tmp_path / "shards"], tokens=rules, capacity=256, out=tmp_path / "own", num_workers=1))
    settings = {"model": None, "init": str(hub), "plan": str(tmp_path / "own"), "hub_folder": True, "steps": 2}
    return load_recipe(TrainRecipe, tiny_way.recipe("run", **settings))


def test_plain_transformers_reads_it(recipe: TrainRecipe):
    out = run(recipe)
    theirs = transformers.AutoModelForImageTextToText.from_pretrained(out / "hub", dtype=torch.float32).eval()
    ours = load_model(out)[0]
    ids = torch.tensor([5, 9, 20, 7])
    nowhere = {"pixels": torch.zeros(0, 3, 1, 1), "slots": torch.zeros(0, 2, dtype=torch.long)}
    with torch.no_grad():
        states = ours.hidden(
            ids, torch.arange(4), torch.tensor([0, 4]), grids=torch.zeros(0, 3, dtype=torch.long), **nowhere
        )
        torch.testing.assert_close(theirs(input_ids=ids[None]).logits[0], ours.head(states), rtol=1e-4, atol=1e-5)


def test_a_missing_one_is_made_without_training_again(recipe: TrainRecipe):
    out = run(recipe)
    rows = (out / "metrics.jsonl").stat().st_mtime_ns
    shutil.rmtree(out / "hub")
    run(recipe)
    assert (out / "hub" / "config.json").is_file()
    assert (out / "metrics.jsonl").stat().st_mtime_ns == rows


def test_what_no_layout_holds_is_refused_before_training(tiny_way: TinyWay):
    with pytest.raises(ConfigError, match="hub_folder: false"):
        run(load_recipe(TrainRecipe, tiny_way.recipe("refused", hub_folder=True)))
    assert not (tiny_way.folder / "refused" / "metrics.jsonl").exists()
