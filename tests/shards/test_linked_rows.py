"""Data that stays where it is: a linked table gives the samples that converting it would give."""

import json
from dataclasses import replace
from pathlib import Path

import PIL.Image
import pytest
from test_shards_tars import picture

from rebus.config import check_recipe
from rebus.errors import ConfigError, DataError, StrangerError
from rebus.records import Image, Part, images_of
from rebus.shards import damage
from rebus.shards.config import ShardsRecipe
from rebus.shards.damage import DamagedSampleError
from rebus.shards.members import CLIMBING_PATH
from rebus.shards.read import iterate, iterate_texts, read_index, read_metadata, read_quarantine
from rebus.shards.run import run


def turns(question: str) -> list[dict]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": "Yes."}]


def chat(element: dict) -> list[dict]:
    content = [{"type": "text", "text": "Is "}, element, {"type": "text", "text": "it?"}]
    return [{"role": "user", "content": content}, {"role": "assistant", "content": "Yes."}]


ROWS = [
    {"id": "one", "image": "images/0.png", "conversations": turns("<image>\nIs it?"), "width": 2, "height": 4},
    {"id": "two", "image": ["images/1.png", "images/2.png"], "conversations": turns("<image>, <image>?")},
    {"id": "none", "conversations": turns("Is it 中?"), "uid": "AB" * 16},
    {"id": "bare", "images": ["images/3.png"], "messages": [
        {"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "Yes."}]},
    {"id": "chat", "messages": chat({"type": "image", "image": "images/4.png", "max_pixels": 784})},
    {"id": "one", "image": "images/0.png", "conversations": turns("<image>\nIs it?"), "width": 2, "height": 4},
]  # fmt: skip
BAD = [
    ({"image": "images/5.png", "conversations": turns("none")}, damage.PLACEHOLDER_MISMATCH),
    ({"image": "../secret.png", "conversations": turns("<image>")}, CLIMBING_PATH),
    ({"image": 7, "conversations": turns("<image>")}, damage.BAD_JSON),
    ({"image": {"path": "images/0.png"}, "conversations": turns("<image>")}, damage.BAD_JSON),
    ({"image": [["images/0.png"]], "conversations": turns("<image>")}, damage.BAD_JSON),
    ({"messages": chat({"type": "video", "video": "a.mp4"})}, damage.LINKED_VIDEO),
    ({"image": "https://example.org/a.png", "conversations": turns("<image>")}, damage.REMOTE_FILE),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "raw" / "images").mkdir(parents=True)
    for number in range(6):
        (tmp_path / "raw" / "images" / f"{number}.png").write_bytes(picture((number + 2, 4)))
    (tmp_path / "raw" / "rows.json").write_text(json.dumps(ROWS, ensure_ascii=False, indent=1), encoding="utf-8")
    lines = [json.dumps(row, ensure_ascii=False) for row in ROWS]
    (tmp_path / "raw" / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8-sig")
    return tmp_path


def recipe(folder: Path, **changes) -> ShardsRecipe:
    tree = {
        "source": "conversations",
        "input": str(folder / "raw" / "rows.json"),
        "out": str(folder / "linked"),
        "link": True,
        "samples_per_shard": 4,
        "num_workers": 1,
    }
    return check_recipe(ShardsRecipe, tree | changes, "test")


def links(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.link"))


def samples(shards: list[Path]) -> list[tuple[Part, ...]]:
    return [sample.parts for shard in shards for _, sample in iterate(shard)]


def without_pixels(parts: tuple[Part, ...]) -> list[Part]:
    """Parts as planning reads them."""
    return [replace(part, data=None) if isinstance(part, Image) else part for part in parts]


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_linked_and_converted_give_the_same_parts(folder: Path, name: str):
    before = {path: path.read_bytes() for path in (folder / "raw").rglob("*") if path.is_file()}
    table = str(folder / "raw" / name)
    assert run(recipe(folder, input=table)).num_samples == len(ROWS)
    run(recipe(folder, input=table, link=False, out=str(folder / "tars")))
    tars = sorted((folder / "tars").glob("*.tar"))
    found = samples(links(folder / "linked"))
    assert [shard.name for shard in links(folder / "linked")] == ["00000.link", "00001.link"]
    assert not list((folder / "linked").glob("*.tar"))
    assert found == samples(tars)
    assert sum(len(images_of(part)) for parts in found for part in parts) == 6
    for shard, tar in zip(links(folder / "linked"), tars, strict=True):
        same = ["key", "kind", "width", "height", "num_images", "text_chars", "image_sizes", "notes"]
        assert read_index(shard).select(same) == read_index(tar).select(same)
        planned = [list(sample.parts) for _, sample in iterate_texts(shard)]
        assert planned == [without_pixels(parts) for parts in samples([shard])]
    assert {path: path.read_bytes() for path in before} == before


def test_a_linked_row_has_its_own_uid_or_that_of_its_bytes(folder: Path):
    run(recipe(folder))
    uids = [uid for shard in links(folder / "linked") for uid in read_index(shard)["uid"].to_pylist()]
    assert uids[2] == "ab" * 16
    assert uids[0] == uids[5]  # the same row twice
    assert len(set(uids)) == 5
    first = links(folder / "linked")[0]
    assert [row["uid"] for row, sample in iterate(first) if sample.uid == row["uid"]] == uids[:4]
    assert read_metadata(first, read_index(first).to_pylist()[1])["id"] == "two"


def test_sizes_may_be_the_records_own_and_no_picture_is_touched(folder: Path):
    for path in (folder / "raw" / "images").iterdir():
        path.unlink()
    run(
        recipe(folder, check_images=False, out=str(folder / "raw" / "linked"))
    )  # inside its own root: nothing counts it
    sizes = [row for shard in links(folder / "raw" / "linked") for row in read_index(shard)["image_sizes"].to_pylist()]
    assert sizes == [[2, 4], [0, 0, 0, 0], [], [0, 0], [0, 0], [2, 4]]
    with pytest.raises(DataError, match="are damaged"):
        run(recipe(folder))


@pytest.mark.parametrize("width", [0, -1, 2**31, 2.0, True, "2", [2, 2], None])
def test_sizes_that_are_none_are_not_believed(folder: Path, width):
    table = folder / "raw" / "told.jsonl"
    table.write_text(json.dumps({**ROWS[0], "width": width}) + "\n")
    run(recipe(folder, input=str(table), check_images=False))
    assert read_index(links(folder / "linked")[0])["image_sizes"].to_pylist() == [[0, 0]]


def test_told_sizes_follow_the_pictures_of_a_page(folder: Path):
    infos = [{"image_name": f"images/{number}.png", "matched_text_index": 1 - number} for number in range(2)]
    page = {"text_list": ["a", "b"], "image_info": infos, "width": [2, 3], "height": [4, 4]}
    (folder / "raw" / "pages.jsonl").write_text(json.dumps(page) + "\n")
    for check_images in (True, False):
        changes = {"source": "pages", "input": str(folder / "raw" / "pages.jsonl"), "check_images": check_images}
        run(recipe(folder, **changes))
        assert read_index(links(folder / "linked")[0])["image_sizes"].to_pylist() == [[3, 4, 2, 4]]


def test_what_is_remembered_of_a_bad_picture_does_not_hold_its_bytes(folder: Path):
    from rebus.shards.sources import files

    (folder / "raw" / "images" / "page.png").write_bytes(b"<html>" * 20_000)
    files._probe_file.cache_clear()
    found = files._probe_file(folder / "raw", "images/page.png")
    assert isinstance(found, DamagedSampleError)
    assert found.__traceback__ is found.__context__ is None


def test_a_large_animation_is_noted_and_not_taken_for_a_picture(folder: Path):
    from rebus.shards.sources import files

    frames = [PIL.Image.effect_noise((400, 300), 90) for _ in range(2)]
    frames[0].save(folder / "raw" / "images" / "moving.gif", save_all=True, append_images=frames[1:])
    assert (folder / "raw" / "images" / "moving.gif").stat().st_size > 1.5 * files.HEAD_BYTES
    assert files.probe_sizes(folder / "raw", "images/moving.gif") == (((400, 300),), (damage.ANIMATED,))


def test_bad_rows_are_named_where_they_lie(folder: Path):
    table = folder / "raw" / "bad.json"
    lines = [json.dumps(ROWS[0]), *(json.dumps(row) for row, _ in BAD), '{"id": "x", ', json.dumps(ROWS[1])]
    table.write_text("[" + ",\n".join(lines) + "]")
    for check_images in (True, False):
        summary = run(recipe(folder, input=str(table), max_bad_share=0.9, check_images=check_images))
        assert (summary.num_samples, summary.num_damaged) == (2, len(BAD) + 1)
        damages = [one for shard in links(folder / "linked") for one in read_quarantine(shard)]
        wanted = [reason for _, reason in BAD]
        assert [one.reason for one in damages] == [*wanted, damage.BAD_JSON]
        data = table.read_bytes()
        for one, line in zip(damages, lines[1:-1], strict=True):
            assert data[one.offset :].startswith(line.encode())


def test_a_picture_that_many_rows_share_is_opened_once(folder: Path, monkeypatch):
    from rebus.shards.sources import files

    row = {"image": "images/1.png", "conversations": turns("<image>")}
    table = folder / "raw" / "shared.jsonl"
    table.write_text("".join(json.dumps({**row, "id": number}) + "\n" for number in range(20)))
    opened = []
    real = files.find_file
    monkeypatch.setattr(files, "find_file", lambda root, name: (opened.append(name), real(root, name))[1])
    files._probe_file.cache_clear()
    assert run(recipe(folder, input=str(table))).num_samples == 20
    assert len(opened) == 1


def test_only_the_beginning_of_a_large_picture_is_read(folder: Path, monkeypatch):
    import builtins
    import io

    import numpy as np

    from rebus.shards.sources import files

    noise = np.random.default_rng(0).integers(0, 256, (400, 500, 3), dtype=np.uint8)
    PIL.Image.fromarray(noise).save(folder / "raw" / "images" / "large.png")
    num_bytes = (folder / "raw" / "images" / "large.png").stat().st_size
    taken = []

    class Counting(io.FileIO):
        def read(self, size: int = -1) -> bytes:
            data = super().read(size)
            taken.append(len(data))
            return data

    files._probe_file.cache_clear()
    monkeypatch.setattr(files, "open", lambda path, mode: Counting(path), raising=False)
    sizes, notes = files.probe_sizes(folder / "raw", "images/large.png")
    assert (sizes, notes) == (((500, 400),), ())
    assert sum(taken) == files.HEAD_BYTES < num_bytes
    assert builtins.open is not files.open


def test_a_killed_linking_goes_on(folder: Path, monkeypatch):
    run(recipe(folder))
    wanted = {path.name: path.read_bytes() for path in (folder / "linked").glob("0*")}
    assert len(wanted) == 6
    from rebus.shards import linking

    real, calls = linking.write_tables, []

    def killed(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(*arguments)

    monkeypatch.setattr(linking, "write_tables", killed)
    with pytest.raises(KeyboardInterrupt):
        run(recipe(folder, out=str(folder / "again")))
    assert run(recipe(folder, out=str(folder / "again"))).num_samples == len(ROWS)
    assert len(calls) == 3  # the first shard was not made again
    assert {path.name: path.read_bytes() for path in (folder / "again").glob("0*")} == wanted


def test_a_table_that_changed_is_a_stranger(folder: Path):
    run(recipe(folder))
    with open(folder / "raw" / "rows.json", "a") as file:
        file.write("\n")
    with pytest.raises(StrangerError, match="Run `rebus shards` again"):
        samples(links(folder / "linked"))
    run(recipe(folder))
    assert len(samples(links(folder / "linked"))) == len(ROWS)


def test_linked_pages_carry_their_pictures_by_path(folder: Path):
    page = {"texts": ["a", None, "b", None], "images": [None, "images/0.png", None, "images/5.png"]}
    (folder / "raw" / "pages.jsonl").write_text(json.dumps(page) + "\n")
    changes = {"source": "pages", "input": str(folder / "raw" / "pages.jsonl")}
    run(recipe(folder, **changes))
    run(recipe(folder, **changes, link=False, out=str(folder / "tars")))
    assert samples(links(folder / "linked")) == samples([folder / "tars" / "00000.tar"])


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"source": "pairs", "input": "a.csv"}, "is converted"),
        ({"input": "a.csv"}, r"reads \.json and \.jsonl"),
        ({"source": "tars", "input": "x", "out": "x"}, "need no link"),
        ({"input": "s3://bucket/rows.json"}, "which only `tars` and `urls` read"),
        ({"tokenizer": "t"}, "open_qwen2vl"),
        ({"source": "tars", "input": "s3://bucket/tars", "root": "x"}, "has none"),
    ],
)
def test_recipes_that_cannot_be(folder: Path, changes: dict, why: str):
    with pytest.raises(ConfigError, match=why):
        recipe(folder, **changes)


def test_a_remote_folder_stays_a_url():
    tree = {"source": "tars", "input": "s3://bucket/tars", "out": "out", "link": True}
    found = check_recipe(ShardsRecipe, tree, "test")
    assert (found.input, found.in_place) == ("s3://bucket/tars", False)
    assert check_recipe(ShardsRecipe, found.model_dump(mode="json"), "test") == found
