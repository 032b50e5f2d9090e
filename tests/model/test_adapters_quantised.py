"""QLoRA on the CPU, by bitsandbytes itself: close to the exact model, and only adapters learn."""

import sys
from copy import deepcopy

import pytest
import torch
from test_adapters import adapters, disturbed, ours

from rebus.errors import ConfigError
from rebus.model.adapters import add_lora, linears_of, merge_lora
from rebus.model.config import LoraConfig
from rebus.model.families import VisionLanguageModel
from rebus.model.quantised import exact_weight, is_quantised, quantised_parameters
from rebus.training.config import TrainsConfig
from rebus.training.parts import freeze_all_but
from tiny_hub import inputs_of, logits

KINDS = {"nf4": 0.11, "fp4": 0.15, "int8": 0.01}
"""Relative error of a weight matrix, measured here: 0.093, 0.124 and 0.0065."""


@pytest.mark.parametrize("kind", KINDS)
def test_close_and_trainable(kind: str):
    model = ours("qwen2_vl")
    inputs = inputs_of(model.image)
    exact, plain = logits(model, inputs), {n: model.language.get_submodule(n) for n in linears_of(model.language)}
    add_lora(model, LoraConfig(rank=2, quantise=kind), seed=0)
    held = {name for name, module in model.named_modules() if is_quantised(module)}
    assert held == {f"language.{name}.base_layer" for name in plain}, "not the head, the connector or the tower"
    assert len(quantised_parameters(model)) == len(held)
    for name, linear in plain.items():
        found = exact_weight(model.language.get_submodule(name).get_base_layer())
        error = float((found - linear.weight).norm() / linear.weight.norm())
        assert 0 < error < KINDS[kind]
    rounded = logits(model, inputs)
    assert 0 < float((rounded - exact).norm() / exact.norm()) < 2.5 * KINDS[kind]

    disturbed(model)
    trainable = freeze_all_but(model, {"lora": TrainsConfig(lr=1.0), "connector": TrainsConfig(lr=1.0)})
    model.train()
    model.head(model.hidden(**inputs.ours)).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in trainable.values())


def test_the_loading_dtype_changes_nothing():
    one, two = ours("qwen2_vl"), ours("qwen2_vl")
    two.language.to(torch.bfloat16)
    for model in (one, two):
        add_lora(model, LoraConfig(rank=2, quantise="nf4", compute="fp32"), seed=0)
    for left, right in zip(quantised_parameters_of(one), quantised_parameters_of(two), strict=True):
        assert torch.equal(left, right)


def quantised_parameters_of(model: VisionLanguageModel) -> list[torch.Tensor]:
    return [exact_weight(module) for module in model.modules() if is_quantised(module)]


@pytest.mark.parametrize("double", [True, False])
def test_merged_onto_the_weights_it_learned_on(double: bool):
    model = ours("llava_siglip")
    inputs = inputs_of(model.image)
    add_lora(model, LoraConfig(rank=2, quantise="nf4", double_quantise=double, alpha=4), seed=0)
    wanted = logits(disturbed(model).eval(), inputs)
    merge_lora(model)
    assert not quantised_parameters(model)
    assert not adapters(model)
    torch.testing.assert_close(logits(model, inputs), wanted, rtol=1e-5, atol=1e-5)


def test_on_the_tower_over_a_quantised_language_model():
    model = ours("qwen2_vl")
    inputs = inputs_of(model.image)
    add_lora(model, LoraConfig(rank=2, on="tower", quantise="nf4", alpha=4), seed=0)
    wanted = logits(disturbed(model).eval(), inputs)
    trains = {"lora": TrainsConfig(lr=1.0)}
    freeze_all_but(model, trains)
    with pytest.raises(ConfigError, match=r"language model, such as .* which `lora.quantise` freezes"):
        freeze_all_but(model, {**trains, "embeddings": TrainsConfig(lr=1.0)})
    merge_lora(model)
    torch.testing.assert_close(logits(model, inputs), wanted, rtol=1e-5, atol=1e-5)


def test_without_bitsandbytes(model: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch):
    untouched = deepcopy(model)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match=r"pip install 'rebus\[qlora\]'"):
        add_lora(model, LoraConfig(quantise="nf4"))
    assert list(model.state_dict()) == list(untouched.state_dict())
