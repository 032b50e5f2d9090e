"""Optimizers step as torch's own; their states are flat named tensors that come back into place."""

import pytest
import torch
from torch import nn

from rebus.errors import ConfigError
from rebus.training.config import OptimizerConfig, TrainsConfig
from rebus.training.optimizer import (
    build_optimizer,
    groups_of,
    make_states,
    optimizer_tensors,
    put_states,
    set_lr,
    take_step,
)

TRAINS = {"language": TrainsConfig(lr=1e-2, weight_decay=0.1)}


def parameters() -> dict[str, nn.Parameter]:
    torch.manual_seed(0)
    return {
        "language.model.layers.0.mlp.weight": nn.Parameter(torch.randn(6, 4)),
        "language.model.layers.0.norm.weight": nn.Parameter(torch.randn(4)),
        "language.model.embed_tokens.weight": nn.Parameter(torch.randn(9, 4)),
    }


def step(trainable: dict[str, nn.Parameter], optimizers, seed: int) -> None:
    torch.manual_seed(seed)
    for parameter in trainable.values():
        parameter.grad = torch.randn_like(parameter)
    take_step(optimizers)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_states_saved_and_restored_go_on_alike(kind):
    config = OptimizerConfig(kind=kind)
    trainable, others = parameters(), parameters()
    first, second = build_optimizer(trainable, TRAINS, config), build_optimizer(others, TRAINS, config)
    step(trainable, first, 1)
    make_states(second)
    assert all(torch.equal(others[name], before) for name, before in parameters().items()), "no weight moved"
    saved = {name: tensor.clone() for name, tensor in optimizer_tensors(first, trainable).items()}
    put_states(second, others, saved)
    with torch.no_grad():
        for name, parameter in others.items():
            parameter.copy_(trainable[name])
    step(trainable, first, 2)
    step(others, second, 2)
    assert all(torch.equal(others[name], trainable[name]) for name in trainable)


def test_adamw_is_torchs():
    trainable, others = parameters(), parameters()
    optimizers = build_optimizer(trainable, TRAINS, OptimizerConfig())
    matrices, vectors = [p for p in others.values() if p.ndim > 1], [p for p in others.values() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    plain = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95))
    for seed in range(5):
        step(trainable, optimizers, seed)
        step(others, (plain,), seed)
    for name in trainable:
        torch.testing.assert_close(trainable[name], others[name])


def test_muon_takes_the_matrices_inside_blocks_and_no_others():
    optimizers = build_optimizer(parameters(), TRAINS, OptimizerConfig(kind="muon"))
    shapes = [[tuple(p.shape) for group in one.param_groups for p in group["params"]] for one in optimizers]
    assert shapes == [[(6, 4)], [(9, 4), (4,)]]
    assert set_lr(optimizers, 0.5) == 5e-3
    assert {group["lr"] for group in groups_of(optimizers)} == {5e-3}


def test_a_state_from_before_the_first_update_is_empty():
    trainable = parameters()
    assert optimizer_tensors(build_optimizer(trainable, TRAINS, OptimizerConfig()), trainable) == {}


def test_8_bits_without_torchao_say_how_to_get_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torchao.optim", None)
    with pytest.raises(ConfigError, match=r"pip install 'rebus\[8bit\]'"):
        build_optimizer(parameters(), TRAINS, OptimizerConfig(kind="adamw_8bit"))
