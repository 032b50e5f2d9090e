"""Adapters: on the layers that were named, drawn as peft draws them, float32 whatever lies beneath."""

import math
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import peft
import pytest
import torch
import yaml
from torch import nn

from rebus.config import check_recipe
from rebus.errors import ConfigError
from rebus.model.adapters import add_lora, fresh_adapters, lora_layers, merge_lora, targets_of
from rebus.model.assemble import parameters_on_meta
from rebus.model.config import LoraConfig
from rebus.model.families import VisionLanguageModel
from rebus.training.config import TrainsConfig
from rebus.training.parts import freeze_all_but
from tiny_hub import Inputs, close, family, inputs_of, logits
from tiny_models import IMAGE, pack, random_document

QWEN = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def ours(name: str) -> VisionLanguageModel:
    return deepcopy(family(name).ours).requires_grad_(False)


def disturbed(model: VisionLanguageModel) -> VisionLanguageModel:
    torch.manual_seed(11)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


def leaves(names: Sequence[str]) -> set[str]:
    return {name.rpartition(".")[2] for name in names}


def adapters(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter for name, parameter in model.named_parameters() if ".lora_" in name}


def test_the_same_as_peft_draws(model: VisionLanguageModel):
    plain: Any = deepcopy(model.language)
    torch.manual_seed(5)
    peft.inject_adapter_in_model(peft.LoraConfig(r=4, target_modules=sorted(QWEN)), plain)
    wanted = adapters(plain)
    low = deepcopy(model).to(torch.bfloat16)
    for one in (model, low):
        add_lora(one, LoraConfig(rank=4), seed=5)
        found = adapters(one.language)
        assert list(found) == list(wanted)
        assert all(found[name].dtype == torch.float32 for name in found)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert bool(next(iter(wanted.values())).any())


def test_without_a_seed_torchs_generator_goes_on(model: VisionLanguageModel):
    again = deepcopy(model)
    torch.manual_seed(7)
    add_lora(model, LoraConfig(rank=2))
    after = torch.rand(1)
    state = torch.manual_seed(7).get_state()
    add_lora(again, LoraConfig(rank=2), seed=7)
    assert torch.equal(torch.get_rng_state(), state), "a seed of its own leaves the generator alone"
    assert all(torch.equal(tensor, adapters(again)[name]) for name, tensor in adapters(model).items())
    assert not torch.equal(torch.rand(1), after)


def test_without_memory_they_wait(model: VisionLanguageModel):
    empty = deepcopy(model)
    for module in list(empty.modules()):
        with parameters_on_meta():
            for name, parameter in list(module.named_parameters(recurse=False)):
                module.register_parameter(name, nn.Parameter(parameter))
    add_lora(empty, LoraConfig(rank=3))
    add_lora(model, LoraConfig(rank=3), seed=2)
    assert all(parameter.is_meta for parameter in adapters(empty).values())
    fresh = dict(fresh_adapters(empty, 2))
    assert list(fresh) == list(adapters(model))
    assert all(torch.equal(fresh[name], tensor) for name, tensor in adapters(model).items())


@pytest.mark.parametrize("name", ["llava_next", "llava_siglip", "qwen2_vl", "qwen2_5_vl"])
def test_llavas_rule(name: str):
    """Open-LLaVA-NeXT's find_all_linear_names: every nn.Linear of the language model by its last name, but lm_head."""
    model = ours(name)
    linears = {path for path, module in model.language.named_modules() if isinstance(module, nn.Linear)}
    found = targets_of(model, LoraConfig(rank=128, alpha=256, dropout=0.05))
    assert found == {"language": [path for path, _ in model.language.named_modules() if path in linears - {"lm_head"}]}
    assert leaves(found["language"]) == QWEN


def test_paddlemixs_settings():
    """rank 12, alpha 256, dropout 0, on q, k, v, o, gate, up and down of every layer: scaled by 256 / 12."""
    text = (
        "{rank: 12, alpha: 256, dropout: 0, targets: [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]}"
    )
    model = ours("qwen2_vl")
    add_lora(model, check_recipe(LoraConfig, yaml.safe_load(text), "here"))
    layers = dict(lora_layers(model))
    assert len(layers) == 7 * model.language.config.num_hidden_layers
    assert {layer.scaling["default"] for layer in layers.values()} == {256 / 12}
    assert targets_of(ours("qwen2_vl"), LoraConfig(targets=tuple(sorted(QWEN)))) == targets_of(
        ours("qwen2_vl"), LoraConfig(targets="all_linear")
    )


@pytest.mark.parametrize(
    ("name", "attention", "mlp"),
    [
        ("llava_next", {"q_proj", "k_proj", "v_proj", "out_proj"}, {"fc1", "fc2"}),
        ("qwen2_vl", {"qkv", "proj"}, {"fc1", "fc2"}),
        ("qwen2_5_vl", {"qkv", "proj"}, {"gate_proj", "up_proj", "down_proj"}),
    ],
)
def test_kinds_on_towers(name: str, attention: set[str], mlp: set[str]):
    model = ours(name)
    of = {kind: targets_of(model, LoraConfig(targets=kind, on="tower"))["tower"] for kind in ("attention", "mlp")}
    assert leaves(of["attention"]) == attention
    assert leaves(of["mlp"]) == mlp
    every = targets_of(model, LoraConfig(on="both"))
    assert sorted(every["tower"]) == sorted(of["attention"] + of["mlp"])
    assert not any("patch" in path for path in every["tower"])
    assert leaves(targets_of(model, LoraConfig(targets="attention"))["language"]) == QWEN - {
        *("gate_proj", "up_proj", "down_proj")
    }


def test_kinds_and_names_mix():
    found = targets_of(
        ours("qwen2_vl"), LoraConfig(targets=("attention", "mlp.fc1", "layers.1.mlp.up_proj"), on="both")
    )
    assert leaves(found["tower"]) == {"qkv", "proj", "fc1"}
    assert [name for name in found["language"] if "mlp" in name] == ["model.layers.1.mlp.up_proj"]


def test_what_is_not_there_is_told(model: VisionLanguageModel):
    with pytest.raises(ConfigError, match=r"names 'q_projs', but the language has self_attn.q_proj, .*mlp.down_proj"):
        targets_of(ours("qwen2_vl"), LoraConfig(targets=("q_proj", "q_projs")))
    with pytest.raises(ConfigError, match=r"names the tower, .*the tower has attn.qkv, attn.proj, mlp.fc1, mlp.fc2"):
        targets_of(ours("qwen2_vl"), LoraConfig(targets=("q_proj",), on="both"))
    with pytest.raises(ConfigError, match="the tower has no linear layer"):
        add_lora(model, LoraConfig(on="tower"))
    assert model.config.lora is None
    add_lora(model, LoraConfig())
    with pytest.raises(ConfigError, match="has adapters already"):
        add_lora(model, LoraConfig())


def test_rslora_scales_by_the_root(model: VisionLanguageModel):
    add_lora(model, LoraConfig(rank=16, alpha=8, rslora=True))
    assert {layer.scaling["default"] for _, layer in lora_layers(model)} == {8 / math.sqrt(16)}


@pytest.mark.parametrize("name", ["llava_siglip", "qwen2_vl"])
def test_both_parts_learn_and_merge(name: str):
    model = ours(name)
    inputs: Inputs = inputs_of(model.image)
    before = logits(model, inputs)
    add_lora(model, LoraConfig(rank=2, alpha=2, on="both"), seed=1)
    close(logits(model, inputs), before)  # B is zero
    disturbed(model)
    trains: dict = {"lora": TrainsConfig(lr=1.0), "connector": TrainsConfig(lr=1.0)}
    trainable = freeze_all_but(model, trains)
    assert model.trains_tower
    model.head(model.hidden(**inputs.ours)).square().mean().backward()
    assert {path.split(".")[0] for path in trainable} == {"tower", "connector", "language"}
    assert all(parameter.grad is not None and parameter.grad.any() for n, parameter in trainable.items() if "lora" in n)
    assert all(parameter.grad is None for n, parameter in model.named_parameters() if n not in trainable)
    adapted = logits(model, inputs)
    merge_lora(model)
    close(logits(model, inputs), adapted)
    assert model.config.lora is None
    assert not adapters(model)
    assert not torch.allclose(adapted, before, atol=1e-3)


def test_a_part_learns_one_way(model: VisionLanguageModel):
    add_lora(model, LoraConfig(rank=2))
    for part in ("language", "embeddings"):
        trains: dict = {"lora": TrainsConfig(lr=1.0), part: TrainsConfig(lr=1.0)}
        with pytest.raises(ConfigError, match="the language's own weights, but it has adapters"):
            freeze_all_but(model, trains)
    freeze_all_but(model, {"lora": TrainsConfig(lr=1.0), "tower": TrainsConfig(lr=1.0)})


def test_half_precision_beneath(model: VisionLanguageModel):
    batch = pack([random_document(9, [3])])
    del batch["labels"]
    add_lora(model, LoraConfig(rank=2))
    exact = disturbed(model).hidden(**batch)
    for name, parameter in model.named_parameters():
        if ".lora_" not in name:
            parameter.data = parameter.data.to(torch.bfloat16)
    model.connector.to(torch.bfloat16)
    low = model.hidden(**batch)
    assert low.dtype == torch.bfloat16
    low.float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in adapters(model).values())
    torch.testing.assert_close(low.float(), exact, rtol=0.1, atol=0.1)
    assert IMAGE.size == 32
