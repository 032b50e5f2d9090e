"""Contract 3: the loss is a sum over all supervised tokens of a step, divided once, however the step is cut up."""

import pytest
import torch

from rebus.batches.feed import build_batch, open_feed
from rebus.config import load_recipe
from rebus.model.families import build
from rebus.training.config import TrainRecipe, TrainsConfig
from rebus.training.parts import freeze_all_but
from rebus.training.step import accumulate
from rebus.training.timing import Stopwatch


def step_over(tiny_way, groups: list[tuple[int, ...]]):
    """Packs cut into the given micro-batches: the mean loss, the number of supervised tokens, the gradients, and the
    batches."""
    recipe = load_recipe(TrainRecipe, tiny_way.recipe("unused"))
    assert recipe.model is not None
    feed = open_feed(tiny_way.plan)
    model = build(recipe.model.model_copy(update={"lora": None}), feed.plan.tokens.image)
    trainable = freeze_all_but(model, {"connector": TrainsConfig(lr=1e-3), "language": TrainsConfig(lr=1e-3)})
    batches = [build_batch(feed, group) for group in groups]
    supervised = sum(batch.num_supervised for batch in batches)
    loss = accumulate(model, batches, supervised, device="cpu", watch=Stopwatch())
    gradients = {name: parameter.grad.clone() for name, parameter in trainable.items()}
    return loss.item() / supervised, supervised, gradients, batches


def test_micro_batches_change_neither_loss_nor_gradients(tiny_way):
    whole, num_whole, whole_gradients, _ = step_over(tiny_way, [(0, 1, 2)])
    parts, num_parts, part_gradients, batches = step_over(tiny_way, [(0,), (1, 2)])
    supervised = [batch.num_supervised for batch in batches]
    assert supervised[0] * 2 != supervised[1], "equal micro-batches would hide a mean of means"
    assert parts == pytest.approx(whole, rel=1e-6)
    assert num_parts == num_whole == sum(supervised)
    for name, gradient in whole_gradients.items():
        torch.testing.assert_close(part_gradients[name], gradient, rtol=1e-5, atol=1e-6)


def test_the_loss_is_the_mean_over_tokens_not_over_micro_batches(tiny_way):
    parts, _, _, _ = step_over(tiny_way, [(0,), (1, 2)])
    first, num_first, _, _ = step_over(tiny_way, [(0,)])
    second, num_second, _, _ = step_over(tiny_way, [(1, 2)])
    expected = (first * num_first + second * num_second) / (num_first + num_second)
    assert parts == pytest.approx(expected, rel=1e-6)
    assert parts != pytest.approx((first + second) / 2, rel=1e-6)
