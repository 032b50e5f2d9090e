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


def test_fp16_keeps_the_gradients_of_many_unlikely_words():
    """The likelihoods of 60,000 words lie where fp16 has few bits or none; scaled as fp16's runs scale their loss."""
    torch.manual_seed(0)
    hidden, labels = torch.randn(4, 32) / 8, torch.tensor([3, 9, 27, 81])
    weight = torch.randn(60_000, 32).half()
    found = []
    for dtype in (torch.float32, torch.float16):
        inputs, head = (one.detach().to(dtype, copy=True).requires_grad_() for one in (hidden, weight))
        (token_loss(inputs, labels, head)[0] * 1024).backward()
        assert inputs.grad is not None
        assert head.grad is not None
        found.append((inputs.grad.double(), head.grad.double()[100:]))
    for wanted, ours in zip(*found, strict=True):
        assert float((ours - wanted).norm() / wanted.norm()) < 0.01
