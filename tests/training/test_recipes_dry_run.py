"""`rebus train --dry-run`: every recipe of the repository, on stand-ins with the real configs and a few samples."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rebus.batches.feed import open_feed
from rebus.checkpoints.state import StateWriter
from rebus.config import apply_override, check_recipe
from rebus.errors import ConfigError, DataError, StrangerError
from rebus.fingerprint import BUILDING
from rebus.mesh import Mesh
from rebus.training.budget import Question, recipes_in, run
from rebus.training.config import TrainRecipe
from rebus.training.dry_run import dry_run, group, open_shapes
from rebus.training.parts import freeze_all_but
from rebus.training.start import describe
from stand_ins import REPOSITORY, Place, make_place, recipe_paths

ALIGN, OWN = "recipes/open_qwen2vl/align.yaml", "recipes/qwen2_vl/own_data.yaml"
SIGLIP, CLIP = 397_745_440, 290_909_184  # without the last block and what follows it, which nothing reads
QWEN25, VICUNA, LLAMA3 = 1_543_714_304, 6_738_415_616, 8_030_261_248
POOLED, PROJECTOR = 1152 * 1536 + 1536 * 1536 + 2 * 1536, 20_979_712  # of LLaVA at 4,096 wide, from its own count
MERGER = {"2b": 34_090_000, "7b": 44_580_000, "72b": 68_170_000}  # published to four digits
ADAPTED = 3 * (1536 + 8960) + (1536 + 1536) * 2 + (1536 + 256) * 2  # in and out of the seven layers of a 2B's block
LEARNS = {
    "recipes/open_qwen2vl/align.yaml": POOLED,
    "recipes/open_qwen2vl/pretrain.yaml": POOLED + QWEN25,
    "recipes/open_qwen2vl/full_pretrain.yaml": POOLED + QWEN25 + SIGLIP,
    "recipes/open_qwen2vl/sft_llava665k.yaml": POOLED + QWEN25,
    "recipes/llava_next/vicuna_7b/align.yaml": PROJECTOR + 4096,
    "recipes/llava_next/vicuna_7b/sft.yaml": PROJECTOR + 4096 + VICUNA + CLIP,
    "recipes/llava_next/llama3_8b/sft.yaml": PROJECTOR + 4096 + LLAMA3 + CLIP,
    "recipes/llava_next/vicuna_7b/lora.yaml": PROJECTOR + 4096 + 319_815_680,
    "recipes/qwen2_vl/2b/sft.yaml": 1_543_714_304 + MERGER["2b"],
    "recipes/qwen2_vl/7b/sft.yaml": 7_070_619_136 + 544_997_376 + MERGER["7b"],
    "recipes/qwen2_vl/72b/sft.yaml": 71_460_495_360 + 1_245_708_288 + MERGER["72b"],
    "recipes/qwen2_vl/2b/lora.yaml": 12 * 28 * ADAPTED + MERGER["2b"],
    "recipes/qwen2_vl/own_data.yaml": 2_208_985_600,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("place"))


@pytest.fixture(autouse=True)
def _there(place: Place) -> Iterator[None]:
    with contextlib.chdir(place.folder):
        yield


def changed(place: Place, path: str, *overrides: str) -> TrainRecipe:
    tree = place.recipes[path].model_dump(mode="json", exclude_unset=True)
    for override in overrides:
        apply_override(tree, override)
    return check_recipe(TrainRecipe, tree, path)


@pytest.mark.parametrize("path", recipe_paths(TrainRecipe))
def test_every_recipe_would_run(path: str, place: Place, capsys: pytest.CaptureFixture[str]):
    recipe = place.recipes[path]
    dry_run(recipe)
    said = capsys.readouterr().out
    for part, settings in recipe.trains.items():
        assert re.search(rf"{part} .*{settings.lr:.3g}", said), f"{part} does not learn:\n{said}"
    assert "trained on" in said
    assert "damaged" not in said
    learns = re.search(r"learn, in all[ │]+([\d,]+)", said)
    assert learns is not None
    if path in LEARNS:
        tolerance = 5000 if "qwen2_vl" in path else 0
        assert int(learns[1].replace(",", "")) == pytest.approx(LEARNS[path], abs=tolerance)


def test_the_sizes_are_of_recipes():
    assert set(LEARNS) <= set(recipe_paths(TrainRecipe))


def test_norms_and_biases_do_not_decay(place: Place):
    recipe = place.recipes["recipes/open_qwen2vl/full_finetune.yaml"]
    model = open_shapes(recipe, open_feed(recipe.plan))
    assert all(parameter.is_meta for parameter in model.parameters())
    learners = list(group(freeze_all_but(model, recipe.trains), recipe))
    assert {(one.part, one.lr) for one in learners} == {(part, one.lr) for part, one in recipe.trains.items()}
    assert {(one.of, one.weight_decay) for one in learners} == {("matrices", 0.1), ("vectors", 0.0)}


def test_says_what_would_happen_and_writes_nothing(place: Place, capsys: pytest.CaptureFixture[str]):
    recipe = changed(place, ALIGN, "out=runs/new", "steps=100", "epochs=null", "schedule.warmup_share=0.05")
    dry_run(recipe)
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "steps 100" in said
    assert "warm-up of 5 steps, 0% of the peak at the end" in said
    assert "documents a step 32.0" in said  # 8 packs of all four samples
    assert "tower, frozen 397,745,440" in said
    assert "at step 0" in said
    assert "pixels 4 x 3 x 384 x 384" in said
    assert not Path("runs/new").exists()


def test_says_where_it_would_go_on(place: Place, capsys: pytest.CaptureFixture[str]):
    recipe = changed(place, ALIGN, "out=runs/begun")
    recipe.out.mkdir()
    (recipe.out / BUILDING).write_text(describe(recipe).fingerprint)
    writer = StateWriter(recipe.out / "states", Mesh(), keep=1, is_async=False)
    writer.begin(17, {"weight": torch.ones(2)}, {})
    writer.seal()
    dry_run(recipe)
    assert "at step 17" in capsys.readouterr().out
    dry_run(changed(place, ALIGN, "out=runs/begun", "trains.connector.lr=2e-3"))
    assert "not at all: runs/begun holds the state after step 17" in re.sub(r"[│\s]+", " ", capsys.readouterr().out)
    assert (recipe.out / "states").is_dir()


def test_another_machine_may_take_it_in_more_processes(place: Place, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match="packs_per_step = 8 does not divide among 3 ranks"):
        dry_run(place.recipes[ALIGN])


@pytest.mark.parametrize(
    ("path", "overrides", "error", "why"),
    [
        (ALIGN, ["plan=runs/none"], DataError, "does not exist"),
        (ALIGN, ["trains.newline.lr=1e-3"], ConfigError, "newline"),
        (ALIGN, ["trains.language.lr=1e-5", "trains.language.last_layers=40"], ConfigError, "28 layers"),
        (ALIGN, ["out=models"], DataError, "files that Rebus did not make"),
        (ALIGN, ["out=runs/open_qwen2vl/plan_align"], DataError, "plan"),
        (ALIGN, ["model.language=models/none"], DataError, "no language model at models/none"),
        (ALIGN, ["model.tower.image_size=224"], ConfigError, "384"),
        (OWN, ["plan=runs/open_qwen2vl/plan_align"], ConfigError, "fixed"),
        (OWN, ["init=runs/none"], DataError, "does not exist"),
        (OWN, ["heldout.plan=runs/qwen2_vl/2b/plan"], StrangerError, "max_pixels"),
        (ALIGN, ["hub_folder=true"], ConfigError, "144|pool|tokens"),
    ],
)
def test_fails_as_the_run_would(path: str, overrides: list[str], error: type[Exception], why: str, place: Place):
    with pytest.raises(error, match=why):
        dry_run(changed(place, path, *overrides))


def test_the_page_shows_what_the_budget_says(capsys: pytest.CaptureFixture[str]):
    """`rebus budget recipes --expected --markdown`, as docs/recipes.md holds it."""
    run(recipes_in(Path("recipes")), [], Question(None, prefer_expected=True), markdown=True)
    printed = capsys.readouterr().out
    assert printed.count("\n") == 2 + len(recipe_paths(TrainRecipe))
    assert printed in (REPOSITORY / "docs" / "recipes.md").read_text(encoding="utf-8")
