"""The average of the weights: followed, lent to the model and given back."""

import json

import pytest
import torch

from rebus.checkpoints.load import load_model
from rebus.config import load_recipe
from rebus.training.config import TrainRecipe
from rebus.training.ema import averaged, follow, start_average
from rebus.training.loop import run
from rebus.training.metrics import read_rows


def test_it_follows_and_is_lent():
    weights = {"a": torch.nn.Parameter(torch.tensor([1.0, 2.0])), "b": torch.nn.Parameter(torch.tensor([[3.0]]))}
    average = start_average(weights)
    for parameter in weights.values():
        parameter.data += 4
    follow(average, weights, decay=0.75)
    assert average["a"].tolist() == [2, 3]
    with averaged(average, weights):
        assert [weights["a"].tolist(), weights["b"].tolist()] == [[2, 3], [[4]]]
    assert [weights["a"].tolist(), average["a"].tolist()] == [[5, 6], [2, 3]]


def test_what_is_saved_is_what_was_held_out(tiny_way):
    """With an average that hardly moves the held-out loss stays, and the checkpoint is the start's."""
    still = {"ema": {"decay": 0.999999}, "heldout": {"plan": str(tiny_way.plan), "every": 2}}
    moving = {"heldout": still["heldout"]}
    losses = {}
    for name, settings in (("still", still), ("moving", moving)):
        recipe = load_recipe(TrainRecipe, tiny_way.recipe(name, steps=4, **settings))
        losses[name] = [row.heldout for row in read_rows(run(recipe) / "metrics.jsonl") if row.heldout is not None]
    assert losses["still"][0] == pytest.approx(losses["still"][1], abs=1e-4)
    assert losses["moving"][0] - losses["moving"][1] > 1e-2
    connector = load_model(tiny_way.folder / "still")[0].connector.state_dict()
    moved = load_model(tiny_way.folder / "moving")[0].connector.state_dict()
    assert any(not torch.allclose(connector[name], moved[name], atol=1e-3) for name in connector)
    assert json.loads((tiny_way.folder / "still" / "manifest.json").read_text())["facts"]["steps"] == 4
