"""`rebus budget` over real configs without weights: what it counts, what it assumes, what it refuses and advises."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from rebus.config import load_recipe
from rebus.errors import ConfigError, DataError
from rebus.training.budget import Asked, Question, fits, foretell, knobs, read_mfu, recipes_in, run, turned, what_fits
from rebus.training.config import TrainRecipe
from rebus.training.devices import parse_gpus
from stand_ins import write_model

EXPECTED = """
expected: {packs: 1000, capacity: 4096, fill: 0.98, visual: 0.82, supervised: 0.18, document_tokens: 176, source: guess}
"""
PRETRAIN = (
    """
out: runs/pretrain
plan: runs/plan
model:
  tower: {kind: transformers, weights: models/siglip-so400m-patch14-384, image_size: 384, select_layer: -2}
  language: models/Qwen2.5-1.5B-Instruct
trains: {connector: {lr: 1.0e-4}, language: {lr: 1.0e-4}}
epochs: 1
packs_per_step: 16
device: cuda
precision: bf16
"""
    + EXPECTED
)
TUNE = PRETRAIN.replace("runs/pretrain", "runs/tune").replace("model:\n", "init: runs/pretrain\n", 1)
TUNE = "\n".join(line for line in TUNE.splitlines() if not line.startswith("  "))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("place")
    for name in ("Qwen2.5-1.5B-Instruct", "siglip-so400m-patch14-384"):
        write_model(folder / "models" / name)
    (folder / "pretrain.yaml").write_text(PRETRAIN)
    (folder / "tune.yaml").write_text(TUNE)
    with contextlib.chdir(folder):
        yield folder


def recipe_of(place: Path, *overrides: str) -> TrainRecipe:
    return load_recipe(TrainRecipe, place / "pretrain.yaml", list(overrides))


def test_a_run_is_foretold_from_what_its_recipe_expects(place: Path):
    asked = Question("8xA100-40G", *read_mfu("0.5"), 2.0).of(recipe_of(place))
    budget = foretell(recipe_of(place), place / "pretrain.yaml", asked)
    language, tower = 1_543_714_304, 27 / 27 * 0.41e9
    assert budget.steps == 63
    assert budget.tokens == pytest.approx(16 * 4096 * 0.98)
    text = 6 * (language - 151_936 * 1536) + 6 * 151_936 * 1536 * 0.18
    seen = 2 * tower * 729 / 176
    assert budget.flops / budget.tokens == pytest.approx(text + seen, rel=0.1)
    assert budget.seconds == pytest.approx(budget.flops / (8 * 312e12 * 0.5))
    assert budget.cost == pytest.approx(budget.hours * 16)
    assert fits(budget, asked)
    assert any("guess" in line for line in budget.facts.assumed)


def test_an_init_that_is_not_made_yet_has_the_shapes_of_the_recipe_that_makes_it(place: Path):
    asked = Asked(parse_gpus("8xH100"))
    first = foretell(recipe_of(place), place / "pretrain.yaml", asked)
    second = foretell(load_recipe(TrainRecipe, place / "tune.yaml"), place / "tune.yaml", asked)
    assert second.flops == first.flops
    (place / "pretrain.yaml").rename(place / "away")
    with pytest.raises(DataError, match="runs/pretrain is not there"):
        foretell(load_recipe(TrainRecipe, place / "tune.yaml"), place / "tune.yaml", asked)
    (place / "away").rename(place / "pretrain.yaml")


def test_what_does_not_fit_is_refused_with_the_knob_that_makes_it_fit(place: Path):
    path, asked = place / "pretrain.yaml", Question("RTX-4090")
    with pytest.raises(ConfigError, match=r"needs [\d.]+ GB a GPU, a RTX-4090 has 25\.3 GB\. It fits with LoRA"):
        run([path], [], asked)
    small = Asked(parse_gpus("8xRTX-4090"))
    recipe = recipe_of(place, "packs_per_batch=2", "activations=off")
    assert not fits(foretell(recipe, path, small), small)
    assert what_fits(recipe, path, small) is not None


def test_knobs_come_in_the_order_of_what_they_cost(place: Path):
    recipe = recipe_of(place, "packs_per_batch=2", "parallel.kind=replicate")
    names = [name for name, _ in knobs(recipe, 4)]
    beginnings = ["packs_per_batch", "parallel.reduce", "activations", "parallel.kind", "optimizer", "LoRA", "QLoRA"]
    beginnings.append("parallel.cpu")
    assert [name.startswith(start) for name, start in zip(names, beginnings, strict=True)] == [True] * 8
    assert len(list(knobs(recipe, 1))) == 7, "one GPU exchanges nothing"


def test_knobs_of_one_section_add_up(place: Path):
    recipe = recipe_of(place, "parallel.reshard_after_forward=false")
    both = turned(turned(recipe, {"parallel": {"reduce_every_batch": True}}), {"parallel": {"cpu_offload": True}})
    assert both.parallel.model_dump() == {
        **recipe.parallel.model_dump(),
        "reduce_every_batch": True,
        "cpu_offload": True,
    }


def test_a_folder_means_its_recipes_that_say_what_they_expect(place: Path):
    assert {path.name for path in recipes_in(place)} == {
        path.name for path in place.glob("*.yaml") if "expected:" in path.read_text()
    }
    with pytest.raises(DataError, match="no training recipe"):
        recipes_in(place / "models")


def test_a_table_has_a_row_for_each_recipe(place: Path, capsys: pytest.CaptureFixture[str]):
    run([place / "pretrain.yaml", place / "tune.yaml"], [], Question("8xA100-40G"), markdown=True)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert {line.count("|") for line in lines} == {11}


def test_mfu_is_given_measured_or_assumed(tmp_path: Path):
    assert read_mfu(None)[1] == "assumed"
    assert read_mfu("0.4") == (0.4, "as given")
    with pytest.raises(ConfigError, match="share of the peak"):
        read_mfu("35")
    row = '{"step": 0, "epoch": 0, "loss": 1, "grad_norm": 1, "lr": 1, "num_tokens": 1, "num_supervised": 1, '
    row += '"num_visual": 0, "num_documents": 1, "num_images": 0, "tokens_total": 1, "step_seconds": 1, "mfu": %s}\n'
    (tmp_path / "metrics.jsonl").write_text("".join(row % mfu for mfu in (0.1, 0.1, 0.4, 0.5)))
    assert read_mfu(str(tmp_path / "metrics.jsonl"))[0] == pytest.approx(0.45)
    (tmp_path / "metrics.jsonl").write_text(row % "null")
    with pytest.raises(ConfigError, match="says no MFU"):
        read_mfu(str(tmp_path / "metrics.jsonl"))


@pytest.mark.parametrize(
    ("gpus", "overrides", "message"),
    [("T4", [], "has no bf16"), ("3xH100", [], "does not divide"), ("H100", ["expected=null"], "no plan")],
)
def test_what_cannot_run_is_refused(place: Path, gpus: str, overrides: list[str], message: str):
    with pytest.raises(ConfigError, match=message):
        foretell(recipe_of(place, *overrides), place / "pretrain.yaml", Asked(parse_gpus(gpus)))
