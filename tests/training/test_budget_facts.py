"""What is counted from a plan is what its batches turn out to hold."""

from dataclasses import fields
from pathlib import Path

import pytest

from rebus.batches.feed import build_batch, open_feed
from rebus.config import load_recipe
from rebus.training.budget import Asked, foretell
from rebus.training.budget_facts import facts_of
from rebus.training.config import TrainRecipe
from rebus.training.devices import parse_gpus
from rebus.training.flops import Work, work_of
from tiny_way import TinyWay, module_way, speaking_folder

__all__ = ["module_way", "speaking_folder"]


@pytest.fixture(scope="module")
def path(module_way: TinyWay) -> Path:
    return module_way.recipe("run", precision="bf16")


def test_a_plan_is_counted(path: Path):
    recipe = load_recipe(TrainRecipe, path)
    feed = open_feed(recipe.plan)
    facts = facts_of(recipe, feed, feed.plan.tokens.image)
    works = [work_of(build_batch(feed, (pack,))) for pack in range(feed.num_packs)]
    summed = {one.name: sum(getattr(work, one.name) for work in works) for one in fields(Work)}
    for name in ("tokens", "pairs", "encoded", "connected"):
        assert getattr(facts.mean, name) * facts.packs == pytest.approx(summed[name])
    assert facts.mean.supervised * facts.packs >= summed["supervised"] > 0
    assert (facts.most.tokens, facts.most.encoded) == (max(w.tokens for w in works), max(w.encoded for w in works))
    assert any("every token of text" in line for line in facts.assumed)


def test_what_lies_here_goes_before_what_is_expected(path: Path):
    """The share that is supervised, which a plan does not say, comes from there; all of it where that is asked for."""
    expected = "{packs: 7, capacity: 64, fill: 0.5, visual: 0.25, supervised: 0.5, document_tokens: 16, source: test}"
    recipe = load_recipe(TrainRecipe, path, [f"expected={expected}"])
    asked = Asked(parse_gpus("L4"))
    counted = foretell(recipe, path, asked).facts
    assert counted.packs == open_feed(recipe.plan).num_packs
    assert counted.supervised == 0.5
    other = foretell(recipe, path, Asked(parse_gpus("L4"), prefer_expected=True)).facts
    assert (other.packs, other.capacity, other.mean.tokens, other.mean.encoded) == (7, 64, 32, 2)
