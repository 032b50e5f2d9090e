"""What the backward pass finds again, and what stays on the host."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.attention.varlen  # registers its operation
from torch.distributed.utils import _to_kwargs
from torch.utils.checkpoint import CheckpointPolicy

from rebus.batches.feed import build_batch, open_feed
from rebus.training.parallel import _Policy
from rebus.training.step import accumulate
from rebus.training.timing import Stopwatch


def test_selective_keeps_attention_and_every_second_product():
    policy, forward = _Policy(), SimpleNamespace(is_recompute=False)
    product = torch.ops.aten.mm.default
    assert [policy(forward, product) is CheckpointPolicy.MUST_SAVE for _ in range(4)] == [True, False, True, False]
    attentions = [
        torch.ops.torch_attn._varlen_attn.default,
        torch.ops.aten._scaled_dot_product_flash_attention.default,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    ]
    for operation in attentions:
        assert policy(forward, operation) is CheckpointPolicy.MUST_SAVE
    assert policy(forward, torch.ops.aten.mul.Tensor) is CheckpointPolicy.PREFER_RECOMPUTE


def test_ids_and_labels_stay_on_the_host(tiny_way):
    batch = build_batch(open_feed(tiny_way.plan), (0,)).to("meta")
    stays = (batch.ids, batch.labels, batch.bounds, batch.slots, batch.grids)
    assert [tensor.device.type for tensor in stays] == ["cpu"] * 5
    sent, _ = _to_kwargs((batch,), {}, torch.device("meta"), False)  # what FSDP does to arguments
    assert sent[0][0] is batch
    assert batch.pixels.device.type == batch.positions.device.type == "meta"


@pytest.mark.parametrize(("reduce_every_batch", "exchanges"), [(False, [False, False, True]), (True, [True] * 3)])
def test_when_gradients_are_exchanged(monkeypatch: pytest.MonkeyPatch, reduce_every_batch: bool, exchanges: list[bool]):
    seen: list[bool] = []
    monkeypatch.setattr("rebus.training.step.sync_gradients", lambda model, wanted: seen.append(wanted))
    weight = torch.nn.Parameter(torch.ones(()))
    batches: Any = [SimpleNamespace(to=lambda device: None)] * 3
    model: Any = lambda batch: (weight * 2, 1)  # noqa: E731
    accumulate(model, batches, 4, device="cpu", watch=Stopwatch(), reduce_every_batch=reduce_every_batch)
    assert seen == exchanges
    assert weight.grad == 1.5
