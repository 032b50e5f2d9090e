"""Towers equal the hidden states of transformers' full models, hold no dead layer, and load from any folder."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from rebus.errors import ConfigError, DataError
from rebus.model.assemble import parameters_on_meta
from rebus.towers.build import build_tower
from rebus.towers.config import TowerConfig, tower_fingerprint
from rebus.towers.hub import empty_tower

SIZE, PATCH, DEPTH = 32, 8, 4
SHAPE = {"hidden_size": 16, "num_hidden_layers": DEPTH, "num_attention_heads": 2, "patch_size": PATCH}
WIDE = {**SHAPE, "intermediate_size": 24}
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "clip": ("CLIPVisionConfig", "CLIPVisionModel", {**WIDE, "image_size": SIZE}),
    "siglip": ("SiglipVisionConfig", "SiglipVisionModel", {**WIDE, "image_size": SIZE}),
    "siglip2": ("Siglip2VisionConfig", "Siglip2VisionModel", {**WIDE, "num_patches": 9}),
    "dinov2": ("Dinov2Config", "Dinov2Model", {**SHAPE, "image_size": 40}),
    "registers": ("Dinov2WithRegistersConfig", "Dinov2WithRegistersModel", {**SHAPE, "image_size": 40}),
}
NUM_SPECIAL = {"clip": 1, "siglip": 0, "siglip2": 0, "dinov2": 1, "registers": 5}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A hub folder of a random model of each kind, every parameter lively."""
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    found = {}
    for kind, (config_class, model_class, settings) in KINDS.items():
        model = getattr(transformers, model_class)(getattr(transformers, config_class)(**settings))
        for parameter in model.parameters():
            parameter.data.normal_(0, 0.2)
        found[kind] = tmp_path_factory.mktemp(kind)
        model.save_pretrained(found[kind])
    return found


def hidden_states(kind: str, folder: Path, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Of the whole model, by transformers alone."""
    model = getattr(transformers, KINDS[kind][1]).from_pretrained(folder).eval()
    inputs: dict[str, torch.Tensor] = {"pixel_values": pixels}
    if kind == "siglip2":
        side, rows = SIZE // PATCH, []
        for picture in pixels:
            tiles = [
                picture[:, PATCH * row : PATCH * (row + 1), PATCH * column : PATCH * (column + 1)].permute(1, 2, 0)
                for row in range(side)
                for column in range(side)
            ]
            rows.append(torch.stack([tile.flatten() for tile in tiles]))
        inputs = {
            "pixel_values": torch.stack(rows),
            "pixel_attention_mask": torch.ones(len(pixels), side * side),
            "spatial_shapes": torch.full((len(pixels), 2), side),
        }
    with torch.no_grad():
        return model(**inputs, output_hidden_states=True).hidden_states


@pytest.mark.parametrize("layer", [-1, -2, 3, 0])
@pytest.mark.parametrize("kind", KINDS)
def test_features_are_the_hidden_state(folders: dict[str, Path], kind: str, layer: int):
    tower: Any = build_tower(
        TowerConfig(kind="transformers", weights=folders[kind], image_size=SIZE, select_layer=layer)
    )
    pixels = torch.randn(3, 3, SIZE, SIZE)
    states = hidden_states(kind, folders[kind], pixels)
    assert len(states) == DEPTH + 1
    wanted = states[layer][:, NUM_SPECIAL[kind] :]
    features = tower(pixels)
    assert features.shape == (3, tower.num_tokens, tower.width) == (3, (SIZE // PATCH) ** 2, 16)
    torch.testing.assert_close(features, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["clip", "dinov2", "registers"])
def test_the_class_token_stands_first(folders: dict[str, Path], kind: str):
    config = TowerConfig(kind="transformers", weights=folders[kind], image_size=SIZE, features="cls_patch")
    tower: Any = build_tower(config)
    pixels = torch.randn(2, 3, SIZE, SIZE)
    state = hidden_states(kind, folders[kind], pixels)[-2]
    wanted = torch.cat([state[:, :1], state[:, NUM_SPECIAL[kind] :]], 1)
    assert (tower.num_tokens, tower.num_patches) == (17, 16)
    torch.testing.assert_close(tower(pixels), wanted, rtol=1e-6, atol=1e-6)
    patches = config.model_copy(update={"features": "patch"})
    assert tower_fingerprint(patches) != tower_fingerprint(config)


@pytest.mark.parametrize("kind", ["siglip", "siglip2"])
def test_no_class_token_to_give(folders: dict[str, Path], kind: str):
    with pytest.raises(ConfigError, match="class token"):
        build_tower(TowerConfig(kind="transformers", weights=folders[kind], image_size=SIZE, features="cls_patch"))


@pytest.mark.parametrize("layer", [-1, -2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_learns_with_checkpointing_too(folders: dict[str, Path], kind: str, layer: int):
    config = TowerConfig(kind="transformers", weights=folders[kind], image_size=SIZE, select_layer=layer)
    pixels, gradients = torch.randn(2, 3, SIZE, SIZE), []
    for is_checkpointed in (False, True):
        tower: Any = build_tower(config).train().requires_grad_(True)
        if is_checkpointed:
            tower.model.gradient_checkpointing_enable()
            assert all(block.gradient_checkpointing for block in tower.model.encoder.children().__next__())
        tower(pixels).square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in tower.named_parameters()})
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in gradients[0].values()), gradients[0]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


@pytest.mark.parametrize("kind", KINDS)
def test_on_meta_and_by_transformers_names(folders: dict[str, Path], kind: str):
    config = TowerConfig(kind="transformers", image_size=SIZE, select_layer=2)
    vision = transformers.AutoConfig.from_pretrained(folders[kind]).to_dict()
    with parameters_on_meta():
        tower: Any = empty_tower(config, vision)
    assert all(parameter.is_meta for parameter in tower.parameters())
    assert not any(buffer.is_meta for buffer in tower.buffers())
    full = getattr(transformers, KINDS[kind][1]).from_pretrained(folders[kind])
    names = {f"model.{name}" for name, _ in full.named_parameters()}
    ours = {name for name, _ in tower.named_parameters()}
    assert ours < names
    assert not any(f".{block}." in name for name in ours for block in (2, 3))
    tower.load_state_dict({name: full.state_dict()[name.removeprefix("model.")] for name in ours}, assign=True)
    pixels = torch.randn(1, 3, SIZE, SIZE)
    wanted = hidden_states(kind, folders[kind], pixels)[2][:, NUM_SPECIAL[kind] :]
    torch.testing.assert_close(tower.eval()(pixels), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("prefix", ["", "vision_model.", "vision_tower.vision_model.", "model.vision_tower."])
def test_any_prefix_and_shards(folders: dict[str, Path], tmp_path: Path, prefix: str):
    """As a vision-language model's folder holds it: a config around the tower's, shards, and others' tensors."""
    vision = json.loads((folders["clip"] / "config.json").read_text())
    config = {"model_type": "llava", "vision_config": vision, "text_config": {"model_type": "llama"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    stored = load_file(folders["clip"] / "model.safetensors")
    tensors = {prefix + name.removeprefix("vision_model."): tensor for name, tensor in stored.items()}
    tensors["model.embed_tokens.weight"] = torch.zeros(3, 3)
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, held in shards.items():
        save_file({name: tensors[name] for name in held}, tmp_path / file)
    index = {"weight_map": {name: file for file, held in shards.items() for name in held}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    pixels = torch.randn(1, 3, SIZE, SIZE)
    towers = [
        build_tower(TowerConfig(kind="transformers", weights=folder, image_size=SIZE))
        for folder in (tmp_path, folders["clip"])
    ]
    assert torch.equal(towers[0](pixels), towers[1](pixels))


def test_a_whole_siglip(tmp_path: Path):
    text = {**WIDE, "vocab_size": 11, "max_position_embeddings": 8}
    whole = transformers.SiglipModel(
        transformers.SiglipConfig(text_config=text, vision_config={**WIDE, "image_size": SIZE})
    ).eval()
    whole.save_pretrained(tmp_path)
    pixels = torch.randn(1, 3, SIZE, SIZE)
    wanted = whole.vision_model(pixels, output_hidden_states=True).hidden_states[-2]
    tower = build_tower(TowerConfig(kind="transformers", weights=tmp_path, image_size=SIZE))
    torch.testing.assert_close(tower(pixels), wanted, rtol=1e-6, atol=1e-6)


def test_damaged_folders_are_refused(folders: dict[str, Path], tmp_path: Path):
    config = TowerConfig(kind="transformers", weights=tmp_path, image_size=SIZE)
    with pytest.raises(DataError, match=r"no config\.json"):
        build_tower(config)
    (tmp_path / "config.json").write_text((folders["clip"] / "config.json").read_text())
    with pytest.raises(DataError, match="no weights"):
        build_tower(config)
    tensors = load_file(folders["clip"] / "model.safetensors")
    lost = next(name for name in tensors if name.endswith("layers.1.mlp.fc1.bias"))
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, tmp_path / "model.safetensors")
    with pytest.raises(DataError, match=r"lacks 1 tensors of its tower, such as '.*layers\.1\.mlp\.fc1\.bias'"):
        build_tower(config)
    save_file({**tensors, lost: torch.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(DataError, match=r"is \(3,\), its config says \(24,\)"):
        build_tower(config)
    save_file({"other.weight": torch.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(DataError, match="holds 0 vision transformers"):
        build_tower(config)


@pytest.mark.parametrize("layer", [5, -6])
def test_a_layer_that_is_not_there(folders: dict[str, Path], layer: int):
    config = TowerConfig(kind="transformers", weights=folders["clip"], image_size=SIZE, select_layer=layer)
    with pytest.raises(ConfigError, match=f"select_layer is {layer}, but the tower has 4 blocks"):
        build_tower(config)


def test_fused_towers_see_the_same_pixels_each_its_own_way(folders: dict[str, Path]):
    """Against the parts alone, on a picture normalised for each."""
    norms = {"clip": ((120.0, 110.0, 100.0), (60.0, 65.0, 70.0)), "dinov2": ((90.0, 80.0, 70.0), (50.0, 40.0, 30.0))}
    parts = {
        kind: TowerConfig(
            kind="transformers", weights=folders[kind], image_size=SIZE, mean=norms[kind][0], std=norms[kind][1]
        )
        for kind in norms
    }
    rule = ((127.5,) * 3, (127.5,) * 3)
    config = TowerConfig(kind="fused", parts=tuple(parts.values()), image_size=SIZE, mean=rule[0], std=rule[1])
    colours = torch.randint(0, 256, (2, 3, SIZE, SIZE)).float()

    def seen(mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
        return (colours - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]

    tower: Any = build_tower(config)
    wanted = torch.cat([build_tower(parts[kind])(seen(*norms[kind])) for kind in norms], -1)
    assert (tower.num_tokens, tower.width) == (16, 32)
    torch.testing.assert_close(tower(seen(*rule)), wanted, rtol=1e-5, atol=1e-5)
    visions = [transformers.AutoConfig.from_pretrained(folders[kind]).to_dict() for kind in norms]
    empty = empty_tower(config, {"parts": visions})
    empty.load_state_dict(tower.state_dict())
    assert torch.equal(empty.eval()(seen(*rule)), tower(seen(*rule)))
    swapped = config.model_copy(update={"parts": config.parts[::-1]})
    assert tower_fingerprint(config) != tower_fingerprint(swapped)


def test_fused_towers_must_agree(folders: dict[str, Path]):
    part = TowerConfig(kind="transformers", weights=folders["clip"], image_size=SIZE)
    with pytest.raises(ValueError, match="parts see the same pixels"):
        TowerConfig(kind="fused", parts=(part,), image_size=64)
    with pytest.raises(ValueError, match="which needs them"):
        TowerConfig(kind="fused", image_size=SIZE)
    named = TowerConfig(**{**part.model_dump(), "mean": (1, 1, 1), "std": (1, 1, 1)})
    with pytest.raises(ValueError, match="must name those of the image rule"):
        TowerConfig(kind="fused", parts=(named,), image_size=SIZE)
    with_class = part.model_copy(update={"features": "cls_patch"})
    with pytest.raises(ConfigError, match=r"\[16, 17\]"):
        build_tower(TowerConfig(kind="fused", parts=(part, with_class), image_size=SIZE))
