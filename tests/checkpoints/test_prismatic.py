"""A Prismatic `.pt`, made here under timm's and Prismatic's names, computes what its own parts compute."""

from pathlib import Path

import pytest
import torch

from rebus.checkpoints import names
from rebus.checkpoints.foreign import open_foreign
from rebus.checkpoints.hub import open_hub
from rebus.checkpoints.layouts import prismatic
from rebus.checkpoints.layouts.timm_names import to_transformers
from rebus.errors import ConfigError, DataError
from tiny_foreign import HALF, SIZE, Run, ours, tiny_names

__all__ = ["tiny_names"]
pytestmark = pytest.mark.usefixtures("tiny_names")


@pytest.mark.parametrize(
    ("vision", "arch", "side"),
    [
        ("tiny-siglip", "4-avgpool", 2),
        ("tiny-siglip", "no-align+9-avgpool", 3),
        ("tiny-siglip", "full-align+gelu-mlp", 3),
        ("tiny-clip", "linear", 3),
        ("tiny-dino", "gelu-mlp", 3),
        ("tiny-fused", "no-align+fused-gelu-mlp", 3),
        ("tiny-fused", "gelu-mlp", 3),
    ],
)
@torch.no_grad()
def test_logits_are_the_composed_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vision: str, arch: str, side: int
):
    run = Run(tmp_path, vision, arch)
    monkeypatch.setattr(names, "resolve", lambda *_, **__: run.home)
    model, tokens = open_hub(tmp_path)
    assert (tokens["template"], tokens["start_of_text"], tokens["max_tokens"]) == ("prismatic_qwen2", "<s>", 256)
    assert tokens["image"]["resize"] == "squash"
    assert not tokens["image"]["reduced_jpeg"]
    ids, pixels = torch.arange(17), torch.randn(1, 3, SIZE, SIZE)
    ids[2 : 2 + side**2] = -1
    wanted = run.logits(ids, pixels, side)
    torch.testing.assert_close(ours(model, ids, pixels, side**2), wanted, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(run.logits(ids, pixels * 0.5, side), wanted, atol=1e-3)  # pictures matter


@torch.no_grad()
def test_the_towers_weights_may_be_a_hub_folders(tmp_path: Path):
    """As the released Open-Qwen2VL: no vision_backbone in the file."""
    from transformers import SiglipVisionConfig, SiglipVisionModel

    run = Run(tmp_path, "tiny-siglip", "gelu-mlp", has_tower=False, config="yaml")
    settings = {**HALF.hub_config(), "hidden_act": "gelu_pytorch_tanh"}
    tower = SiglipVisionModel(SiglipVisionConfig(**settings))
    state = {
        name: tensor
        for stored in run.towers[0].state_dict().items()
        for name, tensor in to_transformers("siglip", *stored)
    }
    tower.load_state_dict(state, strict=False)
    tower.save_pretrained(tmp_path / "tower")
    model, _ = open_foreign(tmp_path, tower=(tmp_path / "tower",), language=run.home)
    ids, pixels = torch.arange(17), torch.randn(1, 3, SIZE, SIZE)
    ids[2:11] = -1
    wanted = run.logits(ids, pixels, 3)
    torch.testing.assert_close(ours(model, ids, pixels, 9), wanted, rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigError, match="2 folders of weights are named"):
        open_foreign(tmp_path, tower=(tmp_path, tmp_path), language=run.home)


@pytest.mark.parametrize(
    ("arch", "wanted"),
    [
        ("linear", ("linear", None)),
        ("gelu-mlp", ("mlp2x_gelu", None)),
        ("no-align+fused-gelu-mlp", ("fused_mlp", None)),
        ("avgpool", ("mlp2x_gelu", 144)),
        ("full-align+729-avgpool", ("mlp2x_gelu", 729)),
    ],
)
def test_architectures(arch: str, wanted: tuple[str, int | None]):
    assert prismatic.architecture(arch) == wanted


@pytest.mark.parametrize("arch", ["no-align+linear", "gelu", "align+gelu-mlp", "140-avgpool", "avgpool-144", ""])
def test_architectures_that_are_none(arch: str):
    with pytest.raises(ConfigError, match="arch_specifier"):
        prismatic.architecture(arch)


def test_which_file_is_meant(tmp_path: Path):
    Run(tmp_path, "tiny-siglip", "gelu-mlp")
    latest = tmp_path / "checkpoints" / "latest-checkpoint.pt"
    assert prismatic.weights_file(tmp_path) == latest
    assert prismatic.recognises(latest)
    assert prismatic.recognises(tmp_path)
    assert not prismatic.recognises(tmp_path / "language")
    latest.rename(tmp_path / "checkpoints" / "step-1.pt")
    assert prismatic.weights_file(tmp_path).name == "step-1.pt"
    (tmp_path / "checkpoints" / "step-2.pt").write_bytes(b"")
    with pytest.raises(DataError, match=r"step-1\.pt, checkpoints/step-2\.pt"):
        prismatic.weights_file(tmp_path)


class Stranger:
    """What a reader that rebuilds objects would have to run code for."""


@pytest.mark.parametrize(
    ("content", "message"),
    [({"model": {"projector": {}}, "config": Stranger()}, "more than tensors"), ({"weights": {}}, "no Prismatic")],
)
def test_what_is_refused(tmp_path: Path, content: object, message: str):
    Run(tmp_path, "tiny-siglip", "gelu-mlp")
    torch.save(content, tmp_path / "checkpoints" / "latest-checkpoint.pt")
    with pytest.raises(DataError, match=message):
        prismatic.read(tmp_path, language=tmp_path / "language")
