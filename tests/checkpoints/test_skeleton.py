"""Every start of a run is a model of shapes and a stream: together they are what loading whole made, to the bit."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
import transformers

from rebus.checkpoints.load import load_model
from rebus.checkpoints.save import save_model
from rebus.checkpoints.skeleton import Skeleton, open_skeleton
from rebus.errors import ConfigError, DataError, StrangerError
from rebus.model.assemble import fill
from rebus.model.config import LoraConfig, ModelConfig
from rebus.model.families import VisionLanguageModel, build
from rebus.pictures.config import FixedConfig, NativeConfig
from rebus.towers.config import TowerConfig
from tiny_hub import save_family
from tiny_models import IMAGE, save_tiny_llama

SQUARE = FixedConfig(size=56, tokens_per_side=2)
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}


def filled(start: Skeleton) -> VisionLanguageModel:
    assert all(parameter.is_meta for parameter in start.model.parameters())
    assert not any(buffer.is_meta for buffer in start.model.buffers())
    fill(start.model, start.tensors(), origin=start.origin)
    return start.model


def assert_same(found: VisionLanguageModel, wanted: VisionLanguageModel) -> None:
    ours, theirs = found.state_dict(), wanted.state_dict()
    assert set(ours) == set(theirs)
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []
    buffers = dict(found.named_buffers())
    assert all(torch.equal(buffers[name], tensor) for name, tensor in wanted.named_buffers())
    learning = {name for name, parameter in wanted.named_parameters() if parameter.requires_grad}
    assert {name for name, parameter in found.named_parameters() if parameter.requires_grad} == learning
    strides = {name: parameter.stride() for name, parameter in wanted.named_parameters()}
    assert {name: parameter.stride() for name, parameter in found.named_parameters()} == strides


def vision_folder(folder: Path, kind: str) -> Path:
    torch.manual_seed(4)
    made = {"siglip": transformers.SiglipVisionModel, "clip": transformers.CLIPVisionModel}[kind]
    config = made.config_class(image_size=56, patch_size=14, **VISION)
    made(config).save_pretrained(folder)
    return folder


def towers(folder: Path) -> dict[str, TowerConfig]:
    clip, siglip = (
        TowerConfig(kind="transformers", weights=vision_folder(folder / kind, kind), image_size=56)
        for kind in ("clip", "siglip")
    )
    tiny = TowerConfig(kind="tiny", image_size=56)
    fused = TowerConfig(kind="fused", parts=(clip, siglip), image_size=56)
    mixed = TowerConfig(kind="fused", parts=(siglip, tiny.model_copy()), image_size=56)
    return {"clip": clip, "siglip": siglip, "tiny": tiny, "fused": fused, "mixed": mixed}


@pytest.mark.parametrize("kind", ["clip", "siglip", "tiny", "fused", "mixed"])
@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2)])
def test_a_config_is_what_building_it_makes(kind: str, lora: LoraConfig | None, language_folder: Path, tmp_path: Path):
    tower = towers(tmp_path)[kind]
    config = ModelConfig(tower=tower, language=language_folder, lora=lora)
    wanted = build(config, SQUARE, seed=3)
    before = torch.get_rng_state()
    found = filled(open_skeleton(None, config.model_copy(update={"lora": None}), image=SQUARE, seed=3, lora=lora))
    assert torch.equal(torch.get_rng_state(), before), "what a run draws later does not hang on how it was opened"
    assert_same(found, wanted)
    assert found.config == wanted.config
    other = filled(open_skeleton(None, config, image=SQUARE, seed=4))
    assert not torch.equal(other.connector.mlp[0].weight, found.connector.mlp[0].weight)


def test_a_native_tower_under_a_fresh_connector(tmp_path: Path, tiny_tokenizer_folder: Path):
    hub = save_family("qwen2_vl", tmp_path / "hub", tiny_tokenizer_folder)
    held, _ = load_model(hub)
    assert isinstance(held.image, NativeConfig)
    found = filled(open_skeleton(None, held.config, image=held.image, seed=1))
    assert torch.equal(found.tower.blocks[0].attn.qkv.weight, held.tower.blocks[0].attn.qkv.weight)
    assert torch.equal(found.head.weight, held.head.weight)
    assert not torch.equal(found.connector.mlp[0].weight, held.connector.mlp[0].weight)


@pytest.mark.parametrize("name", ["llava_siglip", "llava_next", "qwen2_vl", "qwen2_5_vl"])
def test_a_hub_folder(name: str, tmp_path: Path, tiny_tokenizer_folder: Path):
    hub = save_family(name, tmp_path / "hub", tiny_tokenizer_folder)
    start = open_skeleton(hub, None, image=None, template="chatml")
    wanted, tokens = load_model(hub, template="chatml")
    assert_same(filled(start), wanted)
    assert start.tokens == tokens
    adapted = filled(open_skeleton(hub, None, image=None, template="plain", lora=LoraConfig(rank=2), seed=5))
    assert adapted.config.lora == LoraConfig(rank=2)
    first = adapted.language.model.layers[0].self_attn.q_proj
    plain = wanted.language.model.layers[0].self_attn.q_proj
    assert torch.equal(first.base_layer.weight, plain.weight)
    assert not first.lora_B["default"].weight.any()
    assert first.lora_A["default"].weight.std() > 0.01


@pytest.mark.parametrize("parts", [("connector",), ("tower", "language"), ("lora_",)])
def test_a_checkpoint(parts: tuple[str, ...], language_folder: Path, tmp_path: Path):
    lora = LoraConfig(rank=2) if "lora_" in parts else None
    for kind, tower in towers(tmp_path).items():
        model = build(ModelConfig(tower=tower, language=language_folder, lora=lora), SQUARE).eval()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(any(part in name for part in parts))
            parameter.data += 0.1 * parameter.requires_grad
        save_model(model, {"template": "plain"}, tmp_path / kind / "out")
        start = open_skeleton(tmp_path / kind / "out", None, image=None, lora=lora)
        found = filled(start).state_dict()
        wanted = model.state_dict()
        assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []
        assert start.model.config.lora == lora, "it goes on with its own adapters"
        assert not any(module.training for module in start.model.modules()), "dropout would make every answer another"
        if lora is not None:
            with pytest.raises(ConfigError, match="adapters of its own"):
                open_skeleton(tmp_path / kind / "out", None, image=None, lora=LoraConfig(rank=7))


def test_configs_alone_are_enough_for_the_shapes(tmp_path: Path, tiny_tokenizer_folder: Path):
    hub = save_family("llava_siglip", tmp_path / "hub", tiny_tokenizer_folder)
    whole = load_model(hub)[0]
    language, tower = save_tiny_llama(tmp_path / "language"), vision_folder(tmp_path / "tower", "siglip")
    for folder in (hub, language, tower):
        (folder / "model.safetensors").unlink()
    start = open_skeleton(hub, None, image=None, lora=LoraConfig(rank=2), weights=False)
    shapes = {name.replace(".base_layer", ""): p.shape for name, p in start.model.named_parameters()}
    assert all(shapes[name] == parameter.shape for name, parameter in whole.named_parameters())
    config = ModelConfig(tower=TowerConfig(kind="transformers", weights=tower, image_size=56), language=language)
    fresh = open_skeleton(None, config, image=SQUARE, weights=False)
    assert fresh.model.connector.mlp[0].weight.shape == (32, 32)
    for one, reason in ((start, "holds no weights"), (fresh, "holds 0 vision transformers")):
        with pytest.raises(DataError, match=reason):
            fill(one.model, one.tensors(), origin=one.origin)


def test_a_checkpoint_without_its_base_has_shapes(tmp_path: Path):
    base = save_tiny_llama(tmp_path / "base")
    config = ModelConfig(tower=TowerConfig(kind="tiny", image_size=32), language=base, lora=LoraConfig(rank=2))
    model = build(config, IMAGE)
    save_model(model, {"template": "plain"}, tmp_path / "out")
    weights = safetensors.torch.load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    start = open_skeleton(tmp_path / "out", None, image=None, weights=False)
    assert [name for name, _ in start.model.named_parameters()] == [name for name, _ in model.named_parameters()]
    weights["model.norm.weight"] += 1
    safetensors.torch.save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StrangerError, match="language: expected"):
        open_skeleton(tmp_path / "out", None, image=None)


def test_an_efficientnet_that_is_not_imported_yet_has_shapes(language_folder: Path, tmp_path: Path):
    tower = TowerConfig(kind="efficientnet_lite0", image_size=64, weights=tmp_path / "none.safetensors")
    config, image = ModelConfig(tower=tower, language=language_folder), FixedConfig(size=64, tokens_per_side=2)
    start = open_skeleton(None, config, image=image, weights=False)
    assert sum(parameter.numel() for parameter in start.model.tower.parameters()) == 3_350_000
    with pytest.raises(DataError, match="no vision weights"):
        open_skeleton(None, config, image=image)


def test_tensors_that_are_missing_are_missed(language_folder: Path, tmp_path: Path):
    base = save_tiny_llama(tmp_path / "base")
    weights = safetensors.torch.load_file(base / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    safetensors.torch.save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    config = ModelConfig(tower=TowerConfig(kind="tiny", image_size=32), language=base)
    start = open_skeleton(None, config, image=IMAGE)
    with pytest.raises(DataError, match=r"lacks 1 tensors, such as 'model.layers.1.mlp.up_proj.weight'"):
        fill(start.model, start.tensors(), origin=start.origin)
    with pytest.raises(DataError, match="lacks 1 tensors"):
        build(config, IMAGE)


def test_old_tables_and_tied_heads_in_a_folder_are_left_there(tmp_path: Path):
    base = save_tiny_llama(tmp_path / "base")
    weights = safetensors.torch.load_file(base / "model.safetensors")
    wanted = weights["model.embed_tokens.weight"]
    weights |= {"lm_head.weight": wanted + 1, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    safetensors.torch.save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    config = ModelConfig(tower=TowerConfig(kind="tiny", image_size=32), language=base)
    model = filled(open_skeleton(None, config, image=IMAGE))
    assert torch.equal(model.head.weight, wanted)
    assert model.head.weight is model.language.model.embed_tokens.weight


def test_experts_are_read_and_written_as_transformers_stores_them(tmp_path: Path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.MixtralConfig(vocab_size=97, num_key_value_heads=2, num_local_experts=3, **sizes)
    transformers.MixtralForCausalLM(config).save_pretrained(tmp_path / "base")
    assert any("experts.2" in name for name in safetensors.torch.load_file(tmp_path / "base/model.safetensors"))
    tower = TowerConfig(kind="tiny", image_size=32)
    wanted = build(ModelConfig(tower=tower, language=tmp_path / "base"), IMAGE)
    start = open_skeleton(None, ModelConfig(tower=tower, language=tmp_path / "base"), image=IMAGE)
    assert_same(filled(start), wanted)
    save_model(start.model, {"template": "plain"}, tmp_path / "out")
    stored, again = (safetensors.torch.load_file(tmp_path / home) for home in ("base/model.safetensors", WRITTEN))
    assert all(torch.equal(again[name], tensor) for name, tensor in stored.items())
    assert set(again) == set(stored)


WRITTEN = "out/language/model.safetensors"


def test_each_parameter_keeps_its_dtype(language_folder: Path):
    config = ModelConfig(tower=TowerConfig(kind="tiny", image_size=32), language=language_folder)
    wanted = build(config, IMAGE)
    start = open_skeleton(None, config, image=IMAGE)
    for parameter in start.model.language.parameters():
        parameter.data = parameter.data.bfloat16()
    model = filled(start)
    assert model.connector.mlp[0].weight.dtype == torch.float32
    assert torch.equal(model.head.weight, wanted.head.weight.bfloat16())


def test_one_start_alone(language_folder: Path):
    with pytest.raises(ConfigError, match="exactly one"):
        open_skeleton(None, None, image=IMAGE)


def test_quantised_weights_are_no_start(tmp_path: Path):
    base = save_tiny_llama(tmp_path / "base")
    settings = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**settings, "quantization_config": {"quant_method": "awq"}}))
    config = ModelConfig(tower=TowerConfig(kind="tiny", image_size=32), language=base)
    with pytest.raises(DataError, match="quantised by awq"):
        open_skeleton(None, config, image=IMAGE)
