"""Boxes: read in every form, blurred, told in the json; nothing far from them changes."""

import io
import json
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from resharded import UIDS, members, picture, pool, read_tars, reshard

from rebus.errors import ConfigError, DataError
from rebus.selection.resharding.blur import blur_picture
from rebus.shards.read import read_index

__all__ = ["pool"]


def box_files(folder: Path, kind: str) -> Path:
    """UIDS[1] has a box, UIDS[2] has none; of others nothing is known."""
    boxes = {UIDS[1]: [[0.25, 0.25, 0.75, 0.75]], UIDS[2]: []}
    if kind == "json":
        (folder / "boxes.json").write_text(json.dumps(boxes))
        return folder / "boxes.json"
    pq.write_table(pa.table({"uid": list(boxes), "face_bboxes": list(boxes.values())}), folder / "boxes.parquet")
    if kind == "parquet":
        return folder / "boxes.parquet"
    (folder / "map.json").write_text(json.dumps({"00000.tar": "boxes.parquet"}))
    return folder / "map.json"


@pytest.mark.parametrize("kind", ["json", "parquet", "map"])
def test_boxes_are_blurred_and_told(pool: Path, tmp_path: Path, kind: str):
    options = {"apply_blur": True, "inject_blur_metadata": True, "reencode_webp_quality": 80}
    reshard(pool, tmp_path / "out", blur_metadata_map=box_files(tmp_path, kind), num_shards=1, **options)
    samples = dict(sample for found in read_tars(tmp_path / "out").values() for sample in found)
    blurred, bare, unknown = (samples[f"{UIDS[number]}-0"] for number in (1, 2, 3))
    assert set(blurred) == {"webp", "txt", "json"}
    assert PIL.Image.open(io.BytesIO(blurred["webp"])).format == "WEBP"
    assert json.loads(blurred["json"])["face_bboxes"] == [[0.25, 0.25, 0.75, 0.75]]
    assert bare["png"] == picture(2)
    assert json.loads(bare["json"])["face_bboxes"] == []
    assert unknown == members(3, {"uid": UIDS[3], "key": "000000003"})
    assert read_index(tmp_path / "out" / "00000000.tar")["uid"].to_pylist() == UIDS[:4]


def test_boxes_in_pixels_are_refused(pool: Path, tmp_path: Path):
    (tmp_path / "boxes.json").write_text(json.dumps({UIDS[1]: [[4, 4, 12, 12]]}))
    with pytest.raises(DataError, match="as shares"):
        reshard(pool, tmp_path / "out", blur_metadata_map=tmp_path / "boxes.json", apply_blur=True)
    with pytest.raises(ConfigError, match="goes with"):
        reshard(pool, tmp_path / "out", apply_blur=True)


def test_blur_hides_the_box_and_nothing_far_from_it():
    image = PIL.Image.open(io.BytesIO(picture(0, (100, 200))))
    found = np.asarray(blur_picture(image, [(0.4, 0.2, 0.6, 0.6)]), dtype=float)
    before = np.asarray(image, dtype=float)
    inside = (slice(25, 55), slice(85, 115))
    assert found[inside].std() < before[inside].std() / 4
    far = 4 * 0.1 * (40**2 + 40**2) ** 0.5 + 2  # pixels: the widening, and three widths of feathering
    assert np.array_equal(found[:, : int(80 - far)], before[:, : int(80 - far)])
    assert np.array_equal(found[:, int(120 + far) :], before[:, int(120 + far) :])
