"""What counts as input: links are followed, what Rebus made is left out, an `out` never swallows its own input."""

from pathlib import Path

import pytest
from test_shards_run import folder, recipe
from test_shards_tars import picture

from rebus.errors import DataError
from rebus.fingerprint import read_manifest
from rebus.shards.run import run

__all__ = ["folder"]


def test_links_that_the_keeper_of_the_data_put_there_are_followed(folder: Path):
    """LLaVA's data come as `coco -> /data/coco`; what lies behind counts as input, circles do not hang."""
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "a.png").write_bytes(picture())
    (folder / "raw" / "coco").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(folder / "raw")
    table = folder / "raw" / "linked.jsonl"
    table.write_text('{"file": "coco/a.png", "caption": "c"}\n')
    assert run(recipe(folder, input=str(table))).num_samples == 1
    before = read_manifest(folder / "out", "shards").inputs["root"]
    (elsewhere / "a.png").write_bytes(picture() + b"more")
    run(recipe(folder, input=str(table)))
    assert read_manifest(folder / "out", "shards").inputs["root"] != before


def test_an_out_inside_of_the_root_is_no_input(folder: Path):
    inside = recipe(folder, out=str(folder / "raw" / "runs" / "out"))
    run(inside)
    manifest = read_manifest(inside.out, "shards")
    (inside.out / "00000.tar").touch()
    run(recipe(folder, out=str(folder / "raw" / "runs" / "other")))
    assert read_manifest(folder / "raw" / "runs" / "other", "shards").inputs == manifest.inputs


def test_an_out_that_holds_its_own_input_is_refused(folder: Path):
    for out in (folder, folder / "raw", folder / "raw" / "images"):
        with pytest.raises(DataError, match=r"inside each other|files that Rebus did not make"):
            run(recipe(folder, out=str(out)))
    assert (folder / "raw" / "images" / "0.png").is_file()
