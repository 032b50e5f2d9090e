"""One sample, three ways in: linked where it lies, converted, adopted as a tar. All give the same parts, planning sees
the same ones without their pictures, and the index has the sizes that reading finds."""

import base64
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from rebus.config import check_recipe
from rebus.records import Image, Part, Video, images_of
from rebus.shards.config import ShardsRecipe
from rebus.shards.damage import ANSWER_FIRST
from rebus.shards.read import iterate, iterate_texts, open_index, read_index, read_sample
from rebus.shards.run import run
from rebus.shards.write import write_shard

FRAMES = (31, 32, 33)


def encoded(width: int, form: str = "PNG") -> bytes:
    """Told apart by its width; a TIFF has FRAMES."""
    pictures = [PIL.Image.new("RGB", (side, 8), (side, 0, 0)) for side in (FRAMES if form == "TIFF" else (width,))]
    buffer = io.BytesIO()
    pictures[0].save(buffer, form, **({"save_all": True, "append_images": pictures[1:]} if form == "TIFF" else {}))
    return buffer.getvalue()


FILES = {
    **{f"deep/{width}.png": encoded(width) for width in range(11, 15)},
    "20.jpg": encoded(20, "WEBP"),  # of another format than its name says
    "30.tif": encoded(30, "TIFF"),
}


def llava(question: str, image: Any = None, **rest: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "Yes."}]
    return {"image": image, "conversations": turns, **rest}


def messages(question: Any, **rest: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": "Yes."}], **rest}


def entry(width: int, index: int, *, carried: bool) -> dict[str, Any]:
    own = {"image_base64": base64.b64encode(encoded(width)).decode()} if carried else {}
    return {"image_name": f"deep/{width}.png", "matched_text_index": index, **own}


def mmc4(*, carried: bool) -> dict[str, Any]:
    places = ((11, 2), (12, 0), (13, 2))
    infos = [entry(width, index, carried=carried) for width, index in places]
    return {"text_list": ["First.", "Second.", "Third."], "image_info": infos}


def obelics(*, carried: bool) -> dict[str, Any]:
    infos = [entry(width, 0, carried=carried) for width in (14, 11)]
    return {"texts": [None, "one", " ", "two", None], "image_info": [infos[0], None, None, None, infos[1]]}


RECORDS: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "llava": ("conversations", llava("<image>\nIs it?", "deep/11.png", id="a", model=""), ["deep/11.png"]),
    "two": ("conversations", llava("<image>, <image>?", ["20.jpg", "deep/12.png"]), ["20.jpg", "deep/12.png"]),
    "text": ("conversations", llava("Is it?", None), []),
    "frames": ("conversations", llava("<image>" * 4, ["30.tif", "deep/13.png"]), ["30.tif", "deep/13.png"]),
    "first": (
        "conversations",
        {"conversations": [{"from": "gpt", "value": "Ask!"}, *llava("Is it?")["conversations"]]},
        [],
    ),
    "both keys": ("conversations", llava("<image>?", None, images=["deep/14.png"]), ["deep/14.png"]),
    "no place": ("conversations", messages("Is it?", images=["deep/11.png", "20.jpg"]), ["deep/11.png", "20.jpg"]),
    "typed": (
        "conversations",
        messages([{"type": "image", "image": "deep/12.png", "max_pixels": 784}, {"type": "text", "text": "Is it?"}]),
        ["deep/12.png"],
    ),
    "mmc4": ("pages", mmc4(carried=False), ["deep/11.png", "deep/12.png", "deep/13.png"]),
    "mmc4, carried": ("pages", mmc4(carried=True), []),
    "obelics": ("pages", obelics(carried=False), ["deep/14.png", "deep/11.png"]),
    "obelics, carried": ("pages", obelics(carried=True), []),
    "mint": ("pages", {"texts": ["one", None, None, None, "two"], "images": ["30.tif"]}, ["30.tif"]),
}


def without_pixels(part: Part) -> Part:
    if isinstance(part, Video):
        return replace(part, frames=tuple(replace(frame, data=None) for frame in part.frames))
    return replace(part, data=None) if isinstance(part, Image) else part


def brought_in(folder: Path, name: str, **recipe: Any) -> Path:
    """The one shard that a recipe makes."""
    out = folder / f"{name}.out"
    assert run(check_recipe(ShardsRecipe, {"out": str(out), "num_workers": 1} | recipe, name)).num_samples == 1
    (shard,) = [*out.glob("*.tar"), *out.glob("*.link")]
    return shard


def parts_of(shard: Path) -> list[Part]:
    """The parts of its one sample, the same by every way of reading."""
    ((_, sample),) = iterate(shard)
    index = open_index(shard)
    assert read_sample(shard, index.place(0), index.link) == sample
    ((_, planned),) = iterate_texts(shard)
    assert list(planned.parts) == [without_pixels(part) for part in sample.parts]
    sizes = [side for part in sample.parts for image in images_of(part) for side in (image.width, image.height)]
    assert read_index(shard)["image_sizes"].to_pylist() == [sizes]
    return list(sample.parts)


@pytest.mark.parametrize("name", RECORDS)
def test_linked_converted_and_adopted_are_the_same(tmp_path: Path, name: str):
    source, record, pictures = RECORDS[name]
    for path, data in FILES.items():
        (tmp_path / "raw" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "raw" / path).write_bytes(data)
    (tmp_path / "raw" / "rows.jsonl").write_text(json.dumps(record) + "\n")
    members = {f"{n}.{path.rpartition('.')[2]}": FILES[path] for n, path in enumerate(pictures)}
    write_shard(tmp_path / "tars" / "00000.tar", [("a", {**members, "json": json.dumps(record).encode()})])
    table = {"source": source, "input": str(tmp_path / "raw" / "rows.jsonl")}
    shards = [
        brought_in(tmp_path, "linked", **table, link=True),
        brought_in(tmp_path, "converted", **table),
        brought_in(tmp_path, "adopted", source="tars", input=str(tmp_path / "tars")),
    ]
    linked, converted, adopted = map(parts_of, shards)
    assert linked == converted == adopted
    notes = [read_index(shard)["notes"][0].as_py() for shard in shards[:2]]
    assert notes == [ANSWER_FIRST if name == "first" else ""] * 2


def test_frames_of_a_video_are_planned_as_they_are_read(tmp_path: Path):
    content = [{"type": "video", "num_frames": 2, "seconds": [0, 0.5], "max_pixels": 784}, {"type": "image"}]
    members = {f"{number}.png": encoded(40 + number) for number in range(3)}
    record = messages([*content, {"type": "text", "text": "Is it?"}])
    write_shard(tmp_path / "tars" / "00000.tar", [("a", {**members, "json": json.dumps(record).encode()})])
    video, image, *_ = parts_of(brought_in(tmp_path, "adopted", source="tars", input=str(tmp_path / "tars")))
    assert isinstance(video, Video)
    assert ([frame.width for frame in video.frames], video.seconds) == ([40, 41], (0.0, 0.5))
    assert isinstance(image, Image)
    assert image.width == 42
