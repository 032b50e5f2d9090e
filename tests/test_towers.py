"""Towers share one seam, and cached features are a pure function of the picture, to the bit."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from rebus.errors import ConfigError, DataError
from rebus.towers.build import build_tower
from rebus.towers.cache import FeatureCache, encode_cached
from rebus.towers.config import TowerConfig, tower_fingerprint

TINY = TowerConfig(kind="tiny", image_size=32)


def prepare(picture: bytes) -> np.ndarray:
    """Pixels from a picture's bytes: any pure function will do."""
    return np.random.default_rng(list(picture)).standard_normal((3, 32, 32)).astype(np.float32)


def pictures(number: int) -> list[bytes]:
    return [f"picture {index}".encode() for index in range(number)]


@pytest.fixture
def clip_folder(tmp_path: Path) -> Path:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, image_size=32, patch_size=8
    )
    CLIPVisionModel(config).save_pretrained(tmp_path / "clip")
    return tmp_path / "clip"


@pytest.fixture
def siglip_folder(tmp_path: Path) -> Path:
    from transformers import SiglipConfig, SiglipModel

    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
    text = {**vision, "vocab_size": 11, "max_position_embeddings": 8}
    config = SiglipConfig(text_config=text, vision_config={**vision, "image_size": 32, "patch_size": 8})
    SiglipModel(config).save_pretrained(tmp_path / "siglip")
    return tmp_path / "siglip"


@pytest.mark.parametrize("kind", ["clip_folder", "siglip_folder"])
def test_transformers_towers_give_patch_tokens(request: pytest.FixtureRequest, kind: str):
    import transformers

    folder = request.getfixturevalue(kind)
    tower = build_tower(TowerConfig(kind="transformers", weights=folder, image_size=32))
    pixels = torch.randn(2, 3, 32, 32)
    features = tower(pixels)
    assert features.shape == (2, tower.num_tokens, tower.width) == (2, 16, 16)
    model_class = transformers.CLIPVisionModel if kind == "clip_folder" else transformers.SiglipVisionModel
    model = model_class.from_pretrained(folder)
    states = model(pixels, output_hidden_states=True).hidden_states
    torch.testing.assert_close(features, states[-2][:, -16:])
    assert not any(parameter.requires_grad for parameter in tower.parameters())


def test_wrong_image_size_is_refused(clip_folder: Path):
    with pytest.raises(ConfigError, match="sees 32 pixels a side, the recipe says 224"):
        build_tower(TowerConfig(kind="transformers", weights=clip_folder))


def test_missing_weights_are_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"nothing\.safetensors"):
        build_tower(TowerConfig(kind="efficientnet_lite0", weights=tmp_path / "nothing.safetensors"))
    with pytest.raises(ConfigError, match="needs `weights`"):
        build_tower(TowerConfig(kind="transformers"))


def test_folding_keeps_efficientnet(tmp_path: Path):
    """Against the package's own forward pass, with random weights and lively BatchNorm statistics."""
    import safetensors.torch
    from efficientnet_lite_pytorch import EfficientNet

    torch.manual_seed(0)
    network = EfficientNet.from_name("efficientnet-lite0", image_size=64).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.8, 1.6)
            module.bias.data.normal_(0, 0.1)
    safetensors.torch.save_file(network.state_dict(), tmp_path / "model.safetensors")
    tower = build_tower(TowerConfig(kind="efficientnet_lite0", weights=tmp_path, image_size=64))
    pixels = torch.randn(2, 3, 64, 64)
    wanted = network.extract_features(pixels).flatten(2).transpose(1, 2)
    assert wanted.std() > 0.01
    assert (tower.num_tokens, tower.width) == (4, 1280)
    torch.testing.assert_close(tower(pixels), wanted, rtol=1e-3, atol=1e-4)


def test_features_do_not_hang_on_company_threads_or_cache(tmp_path: Path):
    tower, every = build_tower(TINY), pictures(12)
    together = encode_cached(tower, None, every, prepare)
    assert together.shape == (12, 16, 16)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    alone = np.concatenate([encode_cached(tower, None, [picture], prepare) for picture in reversed(every)])[::-1]
    assert torch.get_num_threads() == 3
    torch.set_num_threads(threads)
    cache = FeatureCache(tmp_path, tower_fingerprint(TINY), "rule")
    first = encode_cached(tower, cache, every[:5], prepare)
    cached = encode_cached(tower, cache, every, prepare)
    for other in (alone, cached):
        assert np.array_equal(together, other)
    assert np.array_equal(first, together[:5])


def test_a_picture_is_seen_once(tmp_path: Path):
    seen: list[bytes] = []
    lock = threading.Lock()

    def counting(picture: bytes) -> np.ndarray:
        with lock:
            seen.append(picture)
        return prepare(picture)

    cache = FeatureCache(tmp_path, "tower", "rule")
    for _ in range(2):
        encode_cached(build_tower(TINY), cache, pictures(4), counting)
    assert sorted(seen) == pictures(4)


def test_another_maker_shares_nothing(tmp_path: Path):
    FeatureCache(tmp_path, "tower", "rule").put(b"x", np.ones((2, 3), np.float32))
    assert FeatureCache(tmp_path, "tower", "rule").get(b"x") is not None
    assert FeatureCache(tmp_path, "tower", "other rule").get(b"x") is None
    assert FeatureCache(tmp_path, "other tower", "rule").get(b"x") is None


def test_fingerprints_follow_weights_not_paths(tmp_path: Path):
    prints = []
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).write_bytes(content)
        prints.append(tower_fingerprint(TowerConfig(kind="efficientnet_lite0", weights=tmp_path / name)))
    assert prints[0] == prints[1] != prints[2]


def test_no_picture_is_no_feature():
    assert encode_cached(build_tower(TINY), None, [], prepare).shape == (0, 16, 16)


def test_a_bad_picture_raises_its_own_error():
    def refuse(picture: bytes) -> np.ndarray:
        raise ValueError("not a readable picture")

    with pytest.raises(ValueError, match="not a readable picture"):
        encode_cached(build_tower(TINY), None, [b"x"], refuse)
