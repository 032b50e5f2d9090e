"""Contract 3: the loss is a sum over all supervised tokens of a step, divided once, however the step is cut up."""

import subprocess
import sys

import pytest
import torch

from rebus.batches.feed import build_batch, open_feed
from rebus.config import load_recipe
from rebus.mesh import Mesh
from rebus.model.families import build
from rebus.training.config import TrainRecipe, TrainsConfig
from rebus.training.loop import run
from rebus.training.metrics import read_rows
from rebus.training.parts import freeze_all_but
from rebus.training.step import train_step


def step_over(tiny_way, groups: list[tuple[int, ...]]):
    """One step over packs cut into the given micro-batches: its result and the gradients before the update."""
    recipe = load_recipe(TrainRecipe, tiny_way.recipe("unused"))
    assert recipe.model is not None
    feed = open_feed(tiny_way.plan)
    model = build(recipe.model.model_copy(update={"lora": None}), feed.plan.tokens.image)
    trainable = freeze_all_but(model, {"connector": TrainsConfig(lr=1e-3), "language": TrainsConfig(lr=1e-3)})
    optimizer = torch.optim.SGD(trainable.values(), lr=0.0)
    batches = [build_batch(feed, group) for group in groups]
    result = train_step(model, batches, optimizer, max_grad_norm=1e9, mesh=Mesh())
    return result, {name: parameter.grad.clone() for name, parameter in trainable.items()}, batches


def test_micro_batches_change_neither_loss_nor_gradients(tiny_way):
    whole, whole_gradients, _ = step_over(tiny_way, [(0, 1, 2)])
    parts, part_gradients, batches = step_over(tiny_way, [(0,), (1, 2)])
    supervised = [batch.num_supervised for batch in batches]
    assert supervised[0] * 2 != supervised[1], "equal micro-batches would hide a mean of means"
    assert parts.loss == pytest.approx(whole.loss, rel=1e-6)
    assert parts.num_supervised == whole.num_supervised == sum(supervised)
    for name, gradient in whole_gradients.items():
        torch.testing.assert_close(part_gradients[name], gradient, rtol=1e-5, atol=1e-6)


def test_the_loss_is_the_mean_over_tokens_not_over_micro_batches(tiny_way):
    parts, _, _ = step_over(tiny_way, [(0,), (1, 2)])
    first, _, _ = step_over(tiny_way, [(0,)])
    second, _, _ = step_over(tiny_way, [(1, 2)])
    tokens = first.num_supervised + second.num_supervised
    expected = (first.loss * first.num_supervised + second.loss * second.num_supervised) / tokens
    assert parts.loss == pytest.approx(expected, rel=1e-6)
    assert parts.loss != pytest.approx((first.loss + second.loss) / 2, rel=1e-6)


def test_two_ranks_train_like_one(tiny_way):
    """Real processes over gloo: same losses, same weights to rounding."""
    settings = {"lora": {"rank": 2, "alpha": 4}, "steps": 4}
    alone = run(load_recipe(TrainRecipe, tiny_way.recipe("alone", **settings)))
    recipe = tiny_way.recipe("pair", **settings)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = subprocess.run([*launch, "-m", "rebus", "train", str(recipe)], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    expected = [row.loss for row in read_rows(alone / "metrics.jsonl")]
    found = [row.loss for row in read_rows(tiny_way.folder / "pair" / "metrics.jsonl")]
    assert found == pytest.approx(expected, abs=1e-5)
