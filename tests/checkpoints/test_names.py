"""The table of names agrees with Prismatic's, with transformers' own arithmetic, and with a cache on this machine."""

import json
import sys
from pathlib import Path

import pytest

from rebus.checkpoints import names
from rebus.errors import ConfigError, UnreachableError

VISION_IDS = {
    "clip-vit-b",
    "clip-vit-l",
    "clip-vit-l-336px",
    "siglip-vit-b16-224px",
    "siglip-vit-b16-256px",
    "siglip-vit-b16-384px",
    "siglip-vit-so400m",
    "siglip-vit-so400m-384px",
    "dinov2-vit-l",
    "in1k-vit-l",
    "dinoclip-vit-l-336px",
    "dinosiglip-vit-so-224px",
    "dinosiglip-vit-so-384px",
}
LANGUAGE_IDS = {
    *(f"llama2-{size}-{form}" for size in ("7b", "13b") for form in ("pure", "chat")),
    *("vicuna-v15-7b", "vicuna-v15-13b", "llama3-8b-pure", "mistral-7b", "phi3-3b", "phi3.5-3b"),
    *(f"{name}-{form}" for name in ("llama3.1-8b", "llama3.2-3b") for form in ("pure", "instruct")),
    *("qwen2.5-1.5b", "qwen2.5-1.5b-instruct", "qwen2.5-3b", "qwen2.5-7b-instruct"),
}


def test_prismatics_ids_are_all_here():
    assert set(names.VISION) == VISION_IDS
    assert set(names.LANGUAGE) == LANGUAGE_IDS
    assert (len(VISION_IDS), len(LANGUAGE_IDS)) == (13, 18)


@pytest.mark.parametrize(("prefix", "sizes"), [("qwen2-vl", "2b 7b 72b"), ("qwen2.5-vl", "3b 7b 32b 72b")])
def test_qwens_checkpoints(prefix: str, sizes: str):
    for size in sizes.split():
        assert names.hub_id(f"{prefix}-{size}-instruct").endswith(f"VL-{size.upper()}-Instruct")
        base = names.hub_id(f"{prefix}-{size}")
        assert base == (f"Qwen/Qwen2-VL-{size.upper()}" if prefix == "qwen2-vl" else None)
    assert names.hub_id("Qwen2-VL-2B-Instruct") == "Qwen/Qwen2-VL-2B-Instruct"


@pytest.mark.parametrize(
    ("name", "tokens", "width"),
    [
        ("clip-vit-b", 14, 768),
        ("clip-vit-l", 16, 1024),
        ("clip-vit-l-336px", 24, 1024),
        ("siglip-vit-b16-384px", 24, 768),
        ("siglip-vit-so400m-384px", 27, 1152),
        ("dinosiglip-vit-so-384px", 27, 1024 + 1152),
        ("dinoclip-vit-l-336px", 24, 2048),
    ],
)
def test_a_towers_shape(name: str, tokens: int, width: int):
    rule, config = names.image_rule(name), names.tower_config(name)
    assert rule.tokens_per_side == tokens
    assert sum(part.width for part in names.vision(name)) == width
    assert {part.tokens_per_side for part in names.vision(name)} == {tokens}
    assert config.image_size == rule.size
    assert (config.kind == "fused") == (len(config.parts) > 1)
    if config.parts:
        assert (config.mean, config.std) == (rule.mean, rule.std)
        assert config.parts[1].mean == names.vision(name)[1].mean != config.mean


@pytest.mark.parametrize("name", sorted(VISION_IDS))
def test_transformers_knows_every_towers_config(name: str):
    """303,507,456 parameters of CLIP ViT-L/336 are a published count; here from the config alone."""
    import torch
    import transformers

    for part in names.vision(name):
        settings = transformers.AutoConfig.for_model(**part.hub_config())
        assert settings.model_type == part.model_type
        if name == "clip-vit-l-336px":
            with torch.device("meta"):
                model = transformers.CLIPVisionModel(settings)
            assert sum(parameter.numel() for parameter in model.parameters()) == 303_507_456


def test_templates_and_special_tokens():
    qwen, vicuna = names.language("qwen2.5-1.5b-instruct"), names.language("vicuna-v15-7b")
    assert (qwen.template, qwen.prismatic, qwen.start_of_text) == ("chatml", "prismatic_qwen2", None)
    assert (vicuna.template, vicuna.end_of_text, vicuna.start_of_text) == ("vicuna_v1", "</s>", "<s>")


@pytest.mark.parametrize(
    ("ask", "name", "message"),
    [
        (names.vision, "siglip-so400m-384px", "did you mean 'siglip-vit-so400m-384px'"),
        (names.language, "qwen2.5-1.5-instruct", "did you mean 'qwen2.5-1.5b-instruct'"),
        (names.language, "llama3-70b-pure", "cannot be used"),
        (names.resolve, "qwen2-vl-2b-instuct", "did you mean 'qwen2-vl-2b-instruct'"),
        (names.resolve, "./no/such/folder", "is no folder here"),
        (names.hub_id, "dinosiglip-vit-so-384px", "is two towers"),
        (lambda name: names.tower_config(name, [Path("a")]), "dinosiglip-vit-so-384px", "1 folders"),
    ],
)
def test_errors_name_the_nearest(ask, name: str, message: str):
    with pytest.raises(ConfigError, match=message):
        ask(name)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and no way to the hub."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def cached(cache: Path, hub: str, files: dict[str, str]) -> Path:
    """As huggingface_hub lays a snapshot out."""
    home = cache / ("models--" + hub.replace("/", "--"))
    snapshot = home / "snapshots" / ("c" * 40)
    snapshot.mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("c" * 40)
    for name, content in files.items():
        (snapshot / name).write_text(content)
    return snapshot


def test_a_folder_is_itself(tmp_path: Path):
    assert names.resolve(tmp_path) == tmp_path
    assert names.resolve(str(tmp_path)) == tmp_path


@pytest.mark.parametrize("name", ["Qwen/Qwen2-VL-2B-Instruct", "qwen2-vl-2b-instruct", "Qwen2-VL-2B-Instruct"])
def test_the_local_cache_is_enough(cache: Path, name: str):
    snapshot = cached(cache, "Qwen/Qwen2-VL-2B-Instruct", {"config.json": "{}", "model.safetensors": "x"})
    assert names.resolve(name) == snapshot


def test_what_is_missing_is_explained(cache: Path):
    with pytest.raises(UnreachableError, match="hf download Qwen/Qwen2-VL-2B-Instruct --local-dir FOLDER") as caught:
        names.resolve("qwen2-vl-2b-instruct")
    assert str(cache) in str(caught.value)


def test_half_a_snapshot_is_none(cache: Path):
    """A config that another tool left in the cache, or a shard that did not arrive."""
    index = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}})
    files = {"config.json": "{}", "model.safetensors.index.json": index, "model-1.safetensors": "x"}
    snapshot = cached(cache, "Qwen/Qwen2-VL-7B", files)
    with pytest.raises(UnreachableError):
        names.resolve("qwen2-vl-7b")
    assert names.resolve("qwen2-vl-7b", weights=False) == snapshot
    (snapshot / "model-2.safetensors").write_text("x")
    assert names.resolve("qwen2-vl-7b") == snapshot


def test_the_table_is_light():
    import subprocess

    script = (
        "import sys, rebus.checkpoints.names; sys.exit(bool({'torch', 'numpy', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
