"""Held-out shards whose json says what each picture shows."""

import io
import json
import tarfile
from pathlib import Path

import pytest

LABELS = ["red square", "green table", "blue photo", "white red", "black table", "a photo", "square", "the table"]


@pytest.fixture(scope="session")
def labelled_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished shards folder of pictures in as many colours as there are LABELS."""
    import PIL.Image

    from rebus.shards.config import ShardsRecipe
    from rebus.shards.run import run

    folder = tmp_path_factory.mktemp("heldout")
    with tarfile.open(folder / "00000.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, label in enumerate(LABELS):
            picture = io.BytesIO()
            PIL.Image.new("RGB", (12, 12), (number * 30, 255 - number * 30, number % 2 * 200)).save(
                picture, "WEBP", lossless=True
            )
            members = {"webp": picture.getvalue(), "txt": label.encode(), "json": json.dumps({"label": label}).encode()}
            for extension, content in members.items():
                info = tarfile.TarInfo(f"{number:09d}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    run(ShardsRecipe(source="tars", input=folder, out=folder, num_workers=1))
    return folder
