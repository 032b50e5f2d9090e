"""Checkpoints of models that came from a hub folder, and of trained towers: what was trained is saved, the rest streams
from the folder it came from, and the outputs are the same to the bit."""

from pathlib import Path

import pytest
import safetensors.torch
import torch

from rebus.checkpoints import save
from rebus.checkpoints.load import load_model
from rebus.checkpoints.save import save_model
from rebus.errors import StrangerError
from rebus.fingerprint import file_fingerprint
from rebus.model.adapters import add_lora
from rebus.model.config import LoraConfig, ModelConfig
from rebus.model.families import VisionLanguageModel, build
from rebus.pictures.config import AnyresConfig, FixedConfig
from tiny_hub import family, inputs_of, logits, save_family
from tiny_models import IMAGE

NAMES = ("llava_siglip", "llava_next", "qwen2_vl", "qwen2_5_vl")


def train(model: VisionLanguageModel, *parts: str) -> VisionLanguageModel:
    """As if those parts had been trained and the others were frozen."""
    torch.manual_seed(11)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(part in name for part in parts))
        if parameter.requires_grad:
            parameter.data.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("parts", [("connector",), ("tower", "connector"), ("language",), ("tower", "language")])
def test_what_was_trained_comes_back(name: str, parts: tuple[str, ...], tmp_path: Path, tiny_tokenizer_folder: Path):
    folder = save_family(name, tmp_path / "hub", tiny_tokenizer_folder)
    model, tokens = load_model(folder)
    inputs = inputs_of(model.image)
    before = logits(model, inputs)
    save_model(train(model, *parts), tokens, tmp_path / "out")
    assert (tmp_path / "out/tower").is_dir() == ("tower" in parts)
    assert (tmp_path / "out/language").is_dir() == ("language" in parts)
    loaded, again = load_model(tmp_path / "out")
    assert again == tokens
    assert torch.equal(logits(loaded, inputs), logits(model, inputs))
    assert not torch.equal(logits(loaded, inputs), before)


@pytest.mark.parametrize("name", NAMES)
def test_fully_trained_stands_alone(name: str, tmp_path: Path, tiny_tokenizer_folder: Path):
    """Where no part comes from the folder of the start, it may go; LLaVA's towers name it as their home."""
    folder = save_family(name, tmp_path / "hub", tiny_tokenizer_folder)
    model, tokens = load_model(folder)
    save_model(train(model, "tower", "connector", "language"), tokens, tmp_path / "out")
    folder.rename(tmp_path / "gone")
    loaded, _ = load_model(tmp_path / "out")
    inputs = inputs_of(model.image)
    assert torch.equal(logits(loaded, inputs), logits(model, inputs))


@pytest.mark.parametrize("name", ["llava_next", "qwen2_vl"])
def test_adapters_on_a_hub_folder(name: str, tmp_path: Path, tiny_tokenizer_folder: Path):
    folder = save_family(name, tmp_path / "hub", tiny_tokenizer_folder)
    model, tokens = load_model(folder)
    add_lora(model, LoraConfig(rank=2))
    save_model(train(model, "lora_"), tokens, tmp_path / "out")
    assert not (tmp_path / "out/language").exists()
    inputs = inputs_of(model.image)
    assert torch.equal(logits(load_model(tmp_path / "out")[0], inputs), logits(model, inputs))
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    name = next(key for key in weights if key.endswith("norm.weight"))
    weights[name] += 1
    safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StrangerError, match="language: expected"):
        load_model(tmp_path / "out")


def test_a_tower_of_any_kind(model_config: ModelConfig, tmp_path: Path):
    model = train(build(model_config, IMAGE).eval(), "tower")
    save_model(model, {"template": "plain"}, tmp_path / "out")
    state = load_model(tmp_path / "out")[0].state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    frozen = train(load_model(tmp_path / "out")[0], "connector")
    for folder in ("onward", "out"):  # elsewhere, and where it lies
        save_model(frozen, {"template": "plain"}, tmp_path / folder)
        again = load_model(tmp_path / folder)[0].tower.state_dict()
        assert all(torch.equal(again[name], tensor) for name, tensor in model.tower.state_dict().items())
    save_model(train(model, "connector"), {"template": "plain"}, tmp_path / "out")
    assert not (tmp_path / "out/tower").exists(), "what an earlier save left would be taken for this one's"


def test_a_newline_comes_and_goes_with_the_rule(tmp_path: Path, tiny_tokenizer_folder: Path):
    """LLaVA-1.5's weights go on with tiles: the newline starts fresh, the same each time; and is left behind again."""
    folder = save_family("llava_siglip", tmp_path / "hub", tiny_tokenizer_folder)
    fixed = family("llava_siglip").image
    assert isinstance(fixed, FixedConfig)
    tiles = AnyresConfig(kind="anyres", size=56, tokens_per_side=4, mean=fixed.mean, std=fixed.std)
    first, tokens = load_model(folder, image=tiles)
    second, _ = load_model(folder, image=tiles)
    assert torch.equal(first.connector.image_newline, second.connector.image_newline)
    train(first, "connector")
    save_model(first, tokens, tmp_path / "out")
    assert torch.equal(load_model(tmp_path / "out")[0].connector.image_newline, first.connector.image_newline)
    assert load_model(tmp_path / "out", image=fixed)[0].connector.image_newline is None


def test_torch_files_count_as_base_weights_too(tmp_path: Path, tiny_tokenizer_folder: Path, monkeypatch):
    folder = save_family("qwen2_vl", tmp_path / "hub", tiny_tokenizer_folder)
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    model, tokens = load_model(folder)
    read = []
    monkeypatch.setattr(save, "file_fingerprint", lambda path: read.append(path.name) or file_fingerprint(path))
    save_model(train(model, "connector"), tokens, tmp_path / "out")
    assert read.count("pytorch_model.bin") == 1, "language model and tower are one folder"
    load_model(tmp_path / "out")
    torch.save({**weights, "model.norm.weight": weights["model.norm.weight"] + 1}, folder / "pytorch_model.bin")
    with pytest.raises(StrangerError, match="language: expected"):
        load_model(tmp_path / "out")


def test_a_moved_base_brings_its_tokenizer(tmp_path: Path, tiny_tokenizer_folder: Path):
    folder = save_family("qwen2_vl", tmp_path / "hub", tiny_tokenizer_folder)
    model, tokens = load_model(folder)
    save_model(train(model, "connector"), tokens, tmp_path / "out")
    moved = folder.rename(tmp_path / "moved")
    _, again = load_model(tmp_path / "out", language=moved, tower_weights=moved)
    assert again["tokenizer"] == str(moved)
