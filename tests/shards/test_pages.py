"""Interleaved pages: every form, as tars and as tables, in the order of the page; and what is wrong with one."""

import base64
import io
import json
from pathlib import Path

import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebus.records import Image, Text
from rebus.shards import damage
from rebus.shards.assemble import assemble
from rebus.shards.damage import DamagedSampleError
from rebus.shards.index import write_index
from rebus.shards.pages import embedded_images, in_document_order, page_parts
from rebus.shards.read import iterate, iterate_texts
from rebus.shards.sources import pages
from rebus.shards.write import write_shard


def picture(width: int, format: str = "PNG") -> bytes:
    """Told apart by its width."""
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (width, 8), (width, 0, 0)).save(buffer, format)
    return buffer.getvalue()


def carried(width: int) -> dict:
    return {"image_base64": base64.b64encode(picture(width)).decode(), "image_name": f"{width}.png"}


def matched(index: int) -> dict:
    return {**carried(9), "matched_text_index": index}


def shown(parts) -> list:
    return [part.text if isinstance(part, Text) else part.width for part in parts]


OBELICS = {"texts": [None, "one", "two", None], "image_info": [carried(11), None, None, carried(12)]}
MMC4 = {
    "text_list": ["First.", "Second.", "Third."],
    "image_info": [
        {**carried(11), "matched_text_index": 2},
        {**carried(12), "matched_text_index": 0},
        {**carried(13), "matched_text_index": 2},
    ],
}
SHOWN = {"obelics": [11, "one\n\n", "two", 12], "mmc4": [12, "First. ", "Second.", 11, 13, "Third."]}


def without_base64(page: dict) -> dict:
    infos = [info and {name: info[name] for name in info if name != "image_base64"} for info in page["image_info"]]
    return {**page, "image_info": infos}


@pytest.mark.parametrize(("name", "page"), [("obelics", OBELICS), ("mmc4", MMC4)])
def test_a_tar_whose_json_carries_the_pictures(name: str, page: dict, tmp_path: Path):
    tar = tmp_path / "00000.tar"
    write_shard(tar, [("a", {"json": json.dumps(page).encode()})])
    write_index(tar)
    ((row, sample),) = iterate(tar)
    assert row["kind"] == "page"
    assert shown(sample.parts) == SHOWN[name]
    ((_, planned),) = iterate_texts(tar)
    assert shown(planned.parts) == SHOWN[name], "sizes from the index stand where the pictures do"
    assert all(image.data is None for image in planned.images)


@pytest.mark.parametrize(("name", "page"), [("obelics", OBELICS), ("mmc4", MMC4)])
def test_a_tar_with_pictures_beside_the_json(name: str, page: dict, tmp_path: Path):
    tar = tmp_path / "00000.tar"
    infos = [info for info in page["image_info"] if info]
    members = {f"{n}.png": base64.b64decode(info["image_base64"]) for n, info in enumerate(infos)}
    write_shard(tar, [("a", {**members, "json": json.dumps(without_base64(page)).encode()})])
    write_index(tar)
    assert [shown(sample.parts) for _, sample in iterate(tar)] == [SHOWN[name]]
    assert [shown(sample.parts) for _, sample in iterate_texts(tar)] == [SHOWN[name]]


@pytest.mark.parametrize("by_name", [True, False])
@pytest.mark.parametrize(("name", "page"), [("obelics", OBELICS), ("mmc4", MMC4)])
def test_a_table(name: str, page: dict, by_name: bool, tmp_path: Path):
    for width in (11, 12, 13):
        (tmp_path / f"{width}.png").write_bytes(picture(width))
    record = without_base64(page) if by_name else page
    members = pages.build(record, tmp_path)
    assert b"image_base64" not in members["json"]
    found = assemble("k", "s", members).sample
    assert shown(found.parts) == SHOWN[name]

    metadata, names = pages.survey(record)
    widths = [int(one.split(".")[0]) if by_name else PIL.Image.open(io.BytesIO(one)).width for one in names]
    linked = assemble("k", "s", {}, metadata=metadata, images=[Image(width, 8) for width in widths])
    assert shown(linked.sample.parts) == SHOWN[name]


def test_mint_keeps_its_pictures_as_frames():
    frames = [PIL.Image.new("RGB", (width, 8)) for width in (21, 22)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "TIFF", save_all=True, append_images=frames[1:])
    page = {"texts": [None, "between", None], "images": ["p0", None, "p1"]}
    found = assemble("k", "s", {"tiff": buffer.getvalue(), "json": json.dumps(page).encode()})
    assert shown(found.sample.parts) == [21, "between", 22]


def test_uid_of_the_source_is_kept_and_no_other(tmp_path: Path):
    uid = "0123456789abcdef" * 2
    assert assemble("k", "s", pages.build({**OBELICS, "uid": uid}, tmp_path)).sample.uid == uid
    other = {**OBELICS, "texts": [None, "one", "three", None]}
    uids = {assemble("k", "s", pages.build({**page, "uid": "7"}, tmp_path)).sample.uid for page in (OBELICS, other)}
    assert len(uids) == 2


def test_neighbouring_texts_do_not_grow_together():
    parts = page_parts({"texts": ["one", "", "two\n", "  ", "three", None, "four"]}, [Image(5, 5)])
    assert shown(parts) == ["one\n\n", "two\n", "three", 5, "four"]


def test_an_empty_text_gives_way_to_a_picture():
    page = {"texts": ["a", "", None], "images": [None, "b.png", "c.png"]}
    assert shown(page_parts(page, [Image(1, 1), Image(2, 2)])) == ["a", 1, 2]


def test_a_list_of_pictures_alone_has_no_places():
    assert shown(page_parts({"texts": ["a", None, "b"], "images": ["x.png"]}, [Image(4, 4)])) == ["a", 4, "b"]


@pytest.mark.parametrize(
    ("page", "reason", "named"),
    [
        ({"texts": [None, "a"], "image_info": [None, None]}, damage.MISSING_IMAGE, "place 0"),
        ({"texts": [None, "a"], "image_info": [{}, None]}, damage.MISSING_IMAGE, "place 0"),
        ({"texts": ["b", "a"], "image_info": [carried(9), None]}, damage.PLACEHOLDER_MISMATCH, "place 0"),
        (
            {"texts": [None, None, "a"], "image_info": [carried(9), {"x": 1}, None]},
            damage.MISSING_IMAGE,
            "entry 1",
        ),
        ({"texts": [None, "a"], "image_info": [{"image_base64": "@@@"}, None]}, damage.BAD_BASE64, "@@@"),
        ({"texts": [None, "a"], "image_info": [{"image_base64": "ä"}, None]}, damage.BAD_BASE64, "ä"),
        ({"texts": [None, "a"], "image_info": [{"image_base64": 7}, None]}, damage.BAD_BASE64, "int"),
        ({"texts": [None, "a"], "image_info": [{"image_base64": ""}, None]}, damage.ZERO_BYTE_IMAGE, ""),
        ({"texts": [None, "a"], "image_info": [{"image_base64": "AAAA"}, None]}, damage.UNREADABLE_IMAGE, ""),
        ({"texts": [None, 7], "image_info": [carried(9), None]}, damage.BAD_JSON, "texts"),
        ({"texts": "a", "image_info": []}, damage.BAD_JSON, "texts"),
        ({"texts": ["a"], "image_info": 3}, damage.BAD_JSON, "image_info"),
        ({"texts": [None, " "], "image_info": [carried(9), None]}, damage.EMPTY_CAPTION, ""),
        ({"texts": [None, "a <image>"], "image_info": [carried(9), None]}, damage.PLACEHOLDER_IN_CAPTION, ""),
        ({"texts": [None, None, "a"], "image_info": [carried(9)]}, damage.PLACEHOLDER_MISMATCH, "2 placeholders"),
        (
            {"text_list": ["a"], "image_info": [{**carried(9), "matched_text_index": 1}]},
            damage.PLACEHOLDER_MISMATCH,
            "1",
        ),
        (
            {"text_list": ["a"], "image_info": [{**carried(9), "matched_text_index": -1}]},
            damage.PLACEHOLDER_MISMATCH,
            "",
        ),
        ({"text_list": ["a"], "image_info": [carried(9)]}, damage.BAD_JSON, "matched_text_index"),
        ({"text_list": ["a", None], "image_info": []}, damage.BAD_JSON, "text_list"),
        ({"text_list": ["a"], "image_info": 5}, damage.BAD_JSON, "image_info"),
        ({"text_list": ["a"], "image_info": [{"matched_text_index": 0}]}, damage.PLACEHOLDER_MISMATCH, ""),
    ],
)
def test_damage_is_named(page: dict, reason: str, named: str):
    with pytest.raises(DamagedSampleError) as caught:
        assemble("k", "s", {"json": json.dumps(page).encode()})
    assert caught.value.reason == reason
    assert named in caught.value.detail


def test_a_table_row_that_is_no_page(tmp_path: Path):
    for record, reason in [
        ({"caption": "a"}, damage.BAD_JSON),
        ({"texts": [None], "images": {"a": 1}}, damage.BAD_JSON),
        ({"texts": [None, "a"], "images": ["none.png", None]}, damage.MISSING_IMAGE),
        ({"texts": [None, "a"], "image_info": [{"x": 1}, None]}, damage.MISSING_IMAGE),
    ]:
        with pytest.raises(DamagedSampleError) as caught:
            pages.build(record, tmp_path)
        assert caught.value.reason == reason


def test_base64_with_line_breaks_and_data_uris():
    text = base64.encodebytes(picture(9)).decode()
    infos = [{"image_base64": text}, None, {"image_base64": f"data:image/png;base64,{text}"}]
    assert embedded_images({"image_info": infos}) == [picture(9)] * 2


@given(st.lists(st.integers(0, 4), max_size=12))
def test_mmc4_order_is_that_of_the_texts(indices: list[int]):
    """Every picture once, before the text it matches, several on one text in the order of the list."""
    page = {"text_list": list("abcde"), "image_info": [{"matched_text_index": index} for index in indices]}
    images = [Image(number + 1, 1) for number in range(len(indices))]
    found = shown(page_parts(page, in_document_order(page, images)))
    expected = []
    for index, text in enumerate("abcde"):
        before = [number + 1 for number, matched in enumerate(indices) if matched == index]
        expected += [*before, text]
    assert [one.strip() if isinstance(one, str) else one for one in found] == expected
