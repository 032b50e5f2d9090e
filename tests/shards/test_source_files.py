"""Files that a table names: whatever is wrong with one is the sample's damage, and no error of the program."""

import os
from pathlib import Path

import pytest

from rebus.shards.damage import DamagedSampleError
from rebus.shards.sources.files import probe_sizes, read_image
from tiny_samples import tiny_picture


@pytest.mark.parametrize("read", [read_image, probe_sizes])
@pytest.mark.parametrize("name", ["gone.jpg", "a" * 400, "b/" * 3000, "a.png/b.png", "folder"])
def test_a_name_that_leads_to_no_file_is_a_missing_image(tmp_path: Path, read, name: str):
    (tmp_path / "a.png").write_bytes(tiny_picture())
    (tmp_path / "folder").mkdir()
    assert read(tmp_path, "a.png")
    with pytest.raises(DamagedSampleError, match="missing image") as caught:
        read(tmp_path, name)
    assert len(str(caught.value)) < 600


def test_a_picture_that_may_not_be_read_is_a_missing_image(tmp_path: Path, monkeypatch):
    (tmp_path / "a.png").write_bytes(tiny_picture())

    def refuse(_: Path) -> bytes:
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(DamagedSampleError, match=r"missing image: a\.png: Permission denied"):
        read_image(tmp_path, "a.png")
