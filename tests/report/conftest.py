"""A whole run in a temporary folder, small and with known numbers."""

from pathlib import Path

import pytest
from fake_way import draw_picture, small_pool, write_way

HELDOUT = ["ring", "box", "blot", "tile", "disc", "block", "ball", "plate"]


@pytest.fixture
def way_folder(tmp_path: Path) -> Path:
    """A folder with one artifact of each kind, two plans and two checkpoints; see fake_way for the numbers."""
    heldout = [(label, draw_picture(50 + number)) for number, label in enumerate(HELDOUT)]
    return write_way(tmp_path / "demo", small_pool(), heldout)
