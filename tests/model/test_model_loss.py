"""The chunked loss is plain cross entropy, its gradients too."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from rebus.model import loss as module
from rebus.model.loss import token_loss


@pytest.mark.parametrize("num_tokens", [1, 5, 8, 21])  # below, at and above chunks of 8
@pytest.mark.parametrize("has_bias", [False, True])
def test_equals_full_cross_entropy(monkeypatch: pytest.MonkeyPatch, num_tokens: int, has_bias: bool):
    monkeypatch.setattr(module, "CHUNK", 8)
    torch.manual_seed(num_tokens)
    hidden = torch.randn(num_tokens, 6, requires_grad=True)
    weight = torch.randn(11, 6, requires_grad=True)
    bias = torch.randn(11, requires_grad=True) if has_bias else None
    labels = torch.randint(0, 11, (num_tokens,))
    labels[1::3] = -100
    leaves = [leaf for leaf in (hidden, weight, bias) if leaf is not None]

    total, count = token_loss(hidden, labels, weight, bias)
    logits = torch.nn.functional.linear(hidden, weight, bias)
    expected = cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
    assert count == int((labels >= 0).sum())
    torch.testing.assert_close(total, expected)
    ours = torch.autograd.grad(total / 3, leaves)
    for gradient, wanted in zip(ours, torch.autograd.grad(expected / 3, leaves), strict=True):
        torch.testing.assert_close(gradient, wanted)


def test_a_frozen_head_gets_no_gradient():
    hidden, weight = torch.randn(4, 6, requires_grad=True), torch.randn(11, 6)
    token_loss(hidden, torch.tensor([1, 2, -100, 3]), weight)[0].backward()
    assert weight.grad is None
    assert hidden.grad is not None
    assert not hidden.grad[2].any()


def test_nothing_supervised_is_zero():
    hidden = torch.randn(4, 6, requires_grad=True)
    total, count = token_loss(hidden, torch.full((4,), -100), torch.randn(11, 6))
    total.backward()
    assert (float(total.detach()), count) == (0.0, 0)
