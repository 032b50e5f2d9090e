"""The learning rate is arithmetic; parameter groups follow the parts."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rebus.errors import ConfigError
from rebus.training.config import OptimizerConfig, ScheduleConfig, TrainsConfig
from rebus.training.metrics import StepRow, append_row, read_rows, rewind
from rebus.training.optimizer import build_optimizer, groups_of, set_lr
from rebus.training.parts import freeze_all_but
from rebus.training.schedule import lr_share


@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_rises_to_the_peak_and_ends_at_the_final_share(kind):
    schedule = ScheduleConfig(kind=kind, warmup_steps=4, final_share=0.1)
    shares = [lr_share(step, 20, schedule) for step in range(20)]
    assert shares[:4] == [0.25, 0.5, 0.75, 1.0]
    assert shares[-1] == pytest.approx(0.1)
    assert shares[4:] == sorted(shares[4:], reverse=True)


def test_cosine_is_half_way_in_the_middle():
    schedule = ScheduleConfig(kind="cosine", warmup_steps=0)
    assert lr_share(50, 101, schedule) == pytest.approx(0.5)


@given(st.integers(1, 500), st.integers(0, 50), st.floats(0, 1), st.sampled_from(["cosine", "linear", "constant"]))
def test_share_is_never_outside_zero_and_one(num_steps, warmup, final, kind):
    schedule = ScheduleConfig(kind=kind, warmup_steps=warmup, final_share=final)
    assert all(0 <= lr_share(step, num_steps, schedule) <= 1 for step in range(num_steps))


def tiny_parts() -> torch.nn.Module:
    model = torch.nn.Module()
    model.connector = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.LayerNorm(3))
    model.language = torch.nn.Linear(3, 3)
    return model


def test_groups_follow_parts_and_spare_norms_and_biases():
    model = tiny_parts()
    trains = {"connector": TrainsConfig(lr=1e-2, weight_decay=0.1)}
    trainable = freeze_all_but(model, trains)
    optimizers = build_optimizer(trainable, trains, OptimizerConfig())
    decayed, spared = groups_of(optimizers)
    assert [tuple(p.shape) for p in decayed["params"]] == [(3, 2)]
    assert decayed["weight_decay"] == 0.1
    assert spared["weight_decay"] == 0
    assert len(spared["params"]) == 3
    assert not model.language.weight.requires_grad
    assert set_lr(optimizers, 0.5) == 5e-3
    assert decayed["lr"] == 5e-3


def test_a_part_without_parameters_is_named():
    with pytest.raises(ConfigError, match=r"\['lora'\].*\['connector', 'language'\]"):
        freeze_all_but(tiny_parts(), {"lora": TrainsConfig(lr=1), "connector": TrainsConfig(lr=1)})


def row(step: int) -> StepRow:
    return StepRow(step, 0.1, 2.5, 1.0, 1e-3, 100, 40, 20, 4, 4, 100 * (step + 1), 0.5)


def test_metrics_survive_a_kill_in_the_middle_of_a_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for step in range(5):
        append_row(path, row(step))
    with open(path, "a") as file:
        file.write(json.dumps({"step": 5})[:-3])
    rewind(path, 3)
    append_row(path, row(3))
    assert read_rows(path) == [row(0), row(1), row(2), row(3)]
