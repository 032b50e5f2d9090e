"""A whole evaluation of a tiny random model: against brute force, and killed at any moment."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from rebus.checkpoints.load import load_model
from rebus.errors import DataError, StrangerError
from rebus.evals import run as run_module
from rebus.evals.config import EvalRecipe, PromptConfig
from rebus.evals.examinee import Examinee, encode_question, label_ids
from rebus.evals.run import run
from rebus.evals.task import Item, read_items
from rebus.pictures.prepare import prepare_image
from rebus.tokens.config import TokensConfig
from rebus.tokens.tokenizer import load_tokens


@pytest.fixture
def recipe(tmp_path: Path, tiny_checkpoint: Path, labelled_shards: Path) -> EvalRecipe:
    naming = {"num_items": 3, "max_new_tokens": 4}
    return EvalRecipe.model_validate(
        {"out": tmp_path / "eval", "model": tiny_checkpoint, "shards": labelled_shards, "naming": naming}
    )


@pytest.fixture
def items(labelled_shards: Path) -> list[Item]:
    return read_items(labelled_shards)


def brute_force(examinee: Examinee, pixels: torch.Tensor | None, label: str) -> float:
    """One whole forward without a cache, one label at a time."""
    image = examinee.image if pixels is not None else None
    prompt = encode_question(examinee.prompt, image, examinee.tokens)
    answer = label_ids(label, examinee.prompt, examinee.tokens)
    ids = torch.tensor([*prompt.ids.tolist(), *answer])
    slots = torch.tensor([[int(prompt.image_starts[0]), 4]]) if image else torch.zeros(0, 2, dtype=torch.long)
    grids = torch.tensor([[1, 32, 32]] if image else []).long().reshape(-1, 3)
    pictures = pixels[None] if pixels is not None else torch.zeros(0, 3, 1, 1)
    bounds = torch.tensor([0, len(ids)], dtype=torch.int32)
    with torch.no_grad():
        states = examinee.model.hidden(ids, torch.arange(len(ids)), bounds, pictures, slots, grids)
        logs = examinee.model.head(states).log_softmax(-1)
    before = len(ids) - len(answer) - 1
    return sum(float(logs[before + place, number]) for place, number in enumerate(answer))


def test_likelihoods_equal_brute_force(recipe: EvalRecipe, items: list[Item]):
    examinee = Examinee(recipe, items)
    labels = sorted(item.label for item in items)
    for item in items[:3]:
        pixels = torch.from_numpy(prepare_image(item.image.data, examinee.tokens.config.image))
        expected = [brute_force(examinee, pixels, label) for label in labels]
        assert examinee.log_likelihoods(item.uid, labels) == pytest.approx(expected, abs=1e-4)
    assert examinee.log_likelihoods(None, labels) == pytest.approx(
        [brute_force(examinee, None, label) for label in labels], abs=1e-4
    )
    assert len({round(value, 3) for value in expected}) == len(labels)


def test_results_say_what_was_asked_and_how_sure_they_are(recipe: EvalRecipe):
    results = run(recipe)
    assert results["num_eval"] == 8
    assert results["num_naming"] == len(results["naming"]) == 3
    rows = [json.loads(line) for line in (recipe.out / "answers.jsonl").read_text().splitlines()]
    for control, name in (("right", "right_image"), ("wrong", "wrong_image"), ("none", "no_image")):
        answers = [row for row in rows if row["task"] == "choice" and row["control"] == control]
        num_right = sum(draw["chosen"] == row["label"] for row in answers for draw in row["draws"])
        assert len(answers) == 8
        assert results[f"choice4_{name}"] == num_right / 8
        low, high = results[f"choice4_{name}_ci95"]
        assert low <= results[f"choice4_{name}"] <= high
    assert "pointwise mutual information" in results["rule"]
    assert json.loads((recipe.out / "results.json").read_text()) == results


@pytest.mark.parametrize("num_bytes", [0, 700, 4000, -1, -30])
def test_killed_and_run_again_it_ends_with_the_same_bytes(recipe: EvalRecipe, tmp_path: Path, num_bytes: int):
    run(recipe)
    other = recipe.model_copy(update={"out": tmp_path / "killed"})
    other.out.mkdir()
    whole = (recipe.out / "answers.jsonl").read_bytes()
    (other.out / "answers.jsonl").write_bytes(whole[:num_bytes])
    (other.out / ".building").write_text(run_module.describe(other).fingerprint)
    run(other)
    assert (other.out / "answers.jsonl").read_bytes() == whole
    assert (other.out / "results.json").read_bytes() == (recipe.out / "results.json").read_bytes()


def test_a_finished_evaluation_is_not_done_again(recipe: EvalRecipe, monkeypatch: pytest.MonkeyPatch):
    first = run(recipe)
    monkeypatch.setattr(run_module, "examine", lambda *_: pytest.fail("asked again"))
    assert run(recipe) == first


def test_other_settings_start_over(recipe: EvalRecipe):
    run(recipe)
    results = run(recipe.model_copy(update={"limit": 2, "seed": 5}))
    assert results["num_eval"] == results["num_naming"] == 2
    rows = (recipe.out / "answers.jsonl").read_text().splitlines()
    assert len(rows) == 2 * 3 + 2


def test_a_limit_asks_the_same_questions_of_fewer(recipe: EvalRecipe, tmp_path: Path):
    run(recipe)
    few = recipe.model_copy(update={"limit": 3, "out": tmp_path / "few"})
    run(few)
    whole = {(row["uid"], row["control"]): row for row in choices(recipe.out)}
    for row in choices(few.out):
        other = whole[row["uid"], row["control"]]
        assert (row["picture"], [d["candidates"] for d in row["draws"]]) == (
            other["picture"],
            [d["candidates"] for d in other["draws"]],
        )


def choices(out: Path) -> list[dict]:
    rows = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    return [row for row in rows if row["task"] == "choice"]


def test_features_come_from_the_cache(recipe: EvalRecipe, items: list[Item], tmp_path: Path):
    cached = recipe.model_copy(update={"feature_cache": tmp_path / "features"})
    first = Examinee(cached, items)
    assert len(list((tmp_path / "features").rglob("*.npy"))) == len(items)
    assert torch.equal(Examinee(cached, items).features, first.features)
    assert torch.equal(Examinee(recipe, items).features, first.features)


def test_without_question_and_picture_something_precedes_the_answer(tiny_checkpoint: Path, items: list[Item]):
    tokens = load_tokens(TokensConfig.model_validate(load_model(tiny_checkpoint)[1]))
    bare = PromptConfig(question="")
    assert encode_question(bare, None, tokens).ids.tolist() == [0]
    assert encode_question(bare, items[0].image, tokens).ids.tolist() == [-1] * 4
    assert label_ids("square", bare, tokens)[-1] == 0  # a caption ends as documents end
    assert label_ids("square", PromptConfig(), tokens)[-1] == 2  # an answer ends as turns end
    assert label_ids("square", PromptConfig(close=False), tokens) == label_ids("square", bare, tokens)[:-1]


def test_strangers_are_refused(recipe: EvalRecipe, tmp_path: Path):
    with pytest.raises(StrangerError, match="holds shards, but checkpoint"):
        run(recipe.model_copy(update={"model": recipe.shards}))
    with pytest.raises(DataError, match="does not exist"):
        run(recipe.model_copy(update={"shards": tmp_path / "nowhere"}))


def test_an_undecodable_picture_is_named(recipe: EvalRecipe, items: list[Item]):
    broken = items[0].image.__class__(12, 12, b"RIFF nothing")
    with pytest.raises(DataError, match=f"sample '{items[0].key}': not a readable picture"):
        Examinee(recipe, [Item(items[0].uid, items[0].key, "x", broken)])


def test_an_answer_needs_a_place_for_the_label():
    with pytest.raises(ValueError, match=r"\{label\}"):
        PromptConfig(answer="It is a thing.")


def test_a_foreign_folder_is_left_alone(recipe: EvalRecipe):
    recipe.out.mkdir()
    (recipe.out / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="did not make"):
        run(recipe)
    shutil.rmtree(recipe.out)
