"""The optimizer's state: flat and back, on the device of its parameter."""

import torch
from torch import nn

from rebus.training.optimizer import optimizer_tensors, restore_optimizer


def adamw(device: str) -> tuple[torch.optim.Optimizer, dict[str, nn.Parameter]]:
    parameter = nn.Parameter(torch.ones(3, device=device))
    return torch.optim.AdamW([parameter]), {"connector.weight": parameter}


def test_state_goes_to_the_device_of_its_parameter():
    optimizer, trainable = adamw("cpu")
    trainable["connector.weight"].grad = torch.ones(3)
    optimizer.step()
    saved = optimizer_tensors(optimizer, trainable)
    elsewhere, others = adamw("meta")
    restore_optimizer(elsewhere, others, saved)
    state = elsewhere.state[others["connector.weight"]]
    assert {key: value.device.type for key, value in state.items()} == {
        "step": "cpu",
        "exp_avg": "meta",
        "exp_avg_sq": "meta",
    }


def test_a_state_from_before_the_first_update_is_empty():
    optimizer, trainable = adamw("cpu")
    restore_optimizer(optimizer, trainable, optimizer_tensors(optimizer, trainable))
    assert not optimizer.state
