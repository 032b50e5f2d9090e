"""Probes: small heads on an embedding, from one safetensors file."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rebus.errors import ConfigError, DataError
from rebus.towers.probes import load_probe

ROWS = torch.randn(7, 12, generator=torch.Generator().manual_seed(3))


def saved(path: Path, module: torch.nn.Module, prefix: str = "", **metadata: str) -> Path:
    save_file({prefix + name: tensor for name, tensor in module.state_dict().items()}, path, metadata or None)
    return path


def test_a_single_linear_layer(tmp_path: Path):
    layer = torch.nn.Linear(12, 1)
    found = load_probe(saved(tmp_path / "p.safetensors", layer), 12)(ROWS)
    torch.testing.assert_close(found, layer(ROWS)[:, 0])
    assert found.shape == (7,)


def test_laion_aesthetic_layout_is_read_as_it_is(tmp_path: Path):
    """Linear layers numbered 0, 2, 4, 6, 7 with dropout between and no activation."""
    drop, linear = torch.nn.Dropout, torch.nn.Linear
    chain = torch.nn.Sequential(
        linear(12, 10), drop(), linear(10, 8), drop(), linear(8, 6), drop(), linear(6, 4), linear(4, 1)
    ).eval()
    probe = load_probe(saved(tmp_path / "p.safetensors", chain, "layers."), 12)
    assert len(probe.layers) == 5
    torch.testing.assert_close(probe(ROWS), chain(ROWS)[:, 0])


def test_normalisation_activation_and_output(tmp_path: Path):
    linear = torch.nn.Linear
    chain = torch.nn.Sequential(linear(12, 8), torch.nn.ReLU(), linear(8, 3), torch.nn.ReLU(), linear(3, 1))
    mean, std = torch.randn(12), torch.rand(12) + 0.5
    tensors = {**chain.state_dict(), "mean": mean, "std": std}
    save_file(tensors, tmp_path / "p.safetensors", {"activation": "relu", "output": "sigmoid"})
    found = load_probe(tmp_path / "p.safetensors", 12)(ROWS)
    torch.testing.assert_close(found, torch.sigmoid(chain((ROWS - mean) / std))[:, 0])


def test_ten_layers_are_in_the_order_of_their_numbers(tmp_path: Path):
    chain = torch.nn.Sequential(*[torch.nn.Linear(12, 12) for _ in range(11)], torch.nn.Linear(12, 1))
    found = load_probe(saved(tmp_path / "p.safetensors", chain), 12)(ROWS)
    torch.testing.assert_close(found, chain(ROWS)[:, 0])


def test_another_width_is_refused_with_both_numbers(tmp_path: Path):
    path = saved(tmp_path / "p.safetensors", torch.nn.Linear(12, 1))
    with pytest.raises(ConfigError, match=r"12 wide.*16 wide"):
        load_probe(path, 16)


@pytest.mark.parametrize(
    ("tensors", "metadata", "words"),
    [
        ({"0.weight": (8, 12), "1.weight": (1, 9)}, {}, "each must feed the next"),
        ({"0.weight": (2, 12)}, {}, "each must feed the next"),
        ({"0.bias": (1,)}, {}, "each must feed the next"),
        ({"weight": (1, 12), "kernel": (1, 12)}, {}, "'kernel' is no tensor"),
        ({"a.0.weight": (1, 12), "b.0.weight": (1, 12)}, {}, "is no tensor"),
        ({"weight": (1, 12), "mean": (12,)}, {}, "go together"),
        ({"weight": (1, 12)}, {"activation": "swish"}, "'swish' is not known"),
    ],
)
def test_what_is_no_probe(tmp_path: Path, tensors: dict[str, tuple[int, ...]], metadata: dict[str, str], words: str):
    made = {name: torch.zeros(shape) for name, shape in tensors.items()}
    save_file(made, tmp_path / "p.safetensors", metadata or None)
    with pytest.raises(DataError, match=words):
        load_probe(tmp_path / "p.safetensors", 12)


def test_other_files_go_through_import(tmp_path: Path):
    (tmp_path / "p.pth").write_bytes(b"x")
    with pytest.raises(DataError, match="rebus import"):
        load_probe(tmp_path / "p.pth", 12)
