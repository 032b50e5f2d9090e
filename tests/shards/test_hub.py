"""Parquet of the hub: each form becomes the sample it means, in bounded pieces, damaged rows and files named."""

import base64
import io
import json
from pathlib import Path

import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rebus.errors import DataError
from rebus.records import Image, Sample, Text
from rebus.shards import damage
from rebus.shards.assemble import Assembled, assemble
from rebus.shards.config import ShardsRecipe
from rebus.shards.damage import DamagedSampleError
from rebus.shards.read import iterate
from rebus.shards.run import run
from rebus.shards.sources import hub

KEYS = [f"{number:09d}" for number in range(6)]


def picture(width: int) -> bytes:
    """Told apart by its width."""
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (width, 8), (width, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def uri(width: int) -> str:
    return "data:image/png;base64," + base64.b64encode(picture(width)).decode()


def struct(width: int) -> dict:
    return {"bytes": picture(width), "path": f"{width}.png"}


def write(path: Path, rows: list[dict], rows_per_group: int = 1000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=rows_per_group)
    return path


def records(path: Path, rows_per_piece: int = 1000) -> list[tuple[str, dict]]:
    return [row for piece in hub.find_pieces(path, rows_per_piece) for row in hub.read_piece(piece)]


def assembled(path: Path) -> list[Assembled | str]:
    """What each row becomes, or the reason why it does not."""
    found: list[Assembled | str] = []
    for key, record in records(path):
        try:
            if isinstance(record, DamagedSampleError):
                raise record
            found.append(assemble(key, "s", hub.build(record, path.parent)))
        except DamagedSampleError as error:
            found.append(error.reason)
    return found


def shown(sample: Sample) -> list:
    return [(part.text, part.role) if isinstance(part, Text) else part.width for part in sample.parts]


def test_finevision(tmp_path: Path):
    rows = [
        {
            "images": [struct(11), struct(12)],
            "texts": [{"user": "What?", "assistant": "This."}, {"user": "And?", "assistant": "That."}],
            "source": "a",
            "ratings": [1, 2],
        },
        {
            "images": [struct(13), struct(14)],
            "texts": [{"user": "First <image>", "assistant": "ok"}, {"user": "<image> then", "assistant": "yes"}],
            "source": "b",
            "ratings": [],
        },
        {"images": None, "texts": [{"user": "Only words", "assistant": "Yes."}], "source": "c", "ratings": None},
    ]
    first, second, third = assembled(write(tmp_path / "a.parquet", rows))
    assert shown(first.sample) == [
        *(11, ("\n", "user"), 12, ("\nWhat?", "user"), ("This.", "assistant")),
        *(("And?", "user"), ("That.", "assistant")),
    ]
    assert shown(second.sample) == [
        *(("First ", "user"), 13, ("ok", "assistant"), 14, (" then", "user"), ("yes", "assistant")),
    ]
    assert shown(third.sample) == [("Only words", "user"), ("Yes.", "assistant")]
    assert len({one.sample.uid for one in (first, second, third)}) == 3


def test_binary_pictures_and_metadata(tmp_path: Path):
    uid = "0123456789abcdef" * 2
    turn = [{"user": "a", "assistant": "b"}]
    rows = [{"images": [picture(11)], "texts": turn, "source": "x", "uid": uid, "score": float("nan"), "blob": b"0"}]
    ((key, record),) = records(write(tmp_path / "a.parquet", rows))
    assert key == "000000000"
    members = hub.build(record, tmp_path)
    written = json.loads(members.pop("json"))
    assert list(members) == ["png"]
    assert written == {
        "source": "x",
        "uid": uid,
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
    }


def test_half_characters_in_a_string_of_json_are_damage(tmp_path: Path):
    turns = [{"role": "user", "content": "\ud83d?"}, {"role": "assistant", "content": "Yes."}]
    with pytest.raises(DamagedSampleError, match=damage.BAD_UTF8):
        hub.build({"messages": json.dumps(turns)}, tmp_path)


def test_openai_messages(tmp_path: Path):
    def typed(kind: str, text: str | None = None, url: str | None = None) -> dict:
        return {"type": kind, "text": text, "image_url": url and {"url": url}}

    question = [typed("image_url", url=uri(21)), typed("text", "or"), typed("image"), typed("text", "?")]
    rows = [
        {
            "messages": [
                {"role": "system", "content": [typed("text", "Be brief.")]},
                {"role": "user", "content": question},
                {"role": "assistant", "content": [typed("text", "The second.")]},
            ],
            "images": [struct(22)],
        },
        {
            "messages": [
                {"role": "user", "content": [typed("image_url", url="https://example.org/a.png")]},
                {"role": "assistant", "content": [typed("text", "No.")]},
            ],
            "images": None,
        },
    ]
    good, remote = assembled(write(tmp_path / "a.parquet", rows))
    assert shown(good.sample) == [
        *(("Be brief.", "system"), 21, ("or", "user"), 22, ("?", "user"), ("The second.", "assistant")),
    ]
    assert remote == damage.REMOTE_FILE


def test_messages_as_text_and_as_json(tmp_path: Path):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    write(tmp_path / "a.parquet", [{"messages": turns, "image": struct(5)}])
    write(tmp_path / "b.parquet", [{"messages": json.dumps(turns), "image": struct(5)}])
    wanted = [5, ("\nHi", "user"), ("Ho", "assistant")]
    assert [shown(one.sample) for name in "ab" for one in assembled(tmp_path / f"{name}.parquet")] == [wanted, wanted]


def test_llava_conversations(tmp_path: Path):
    turns = [{"from": "human", "value": "What is <image>?"}, {"from": "gpt", "value": "A dot."}]
    bare = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A dot."}]
    rows = [{"conversations": turns, "image": struct(6)}, {"conversations": bare, "image": struct(7)}]
    placed, first = assembled(write(tmp_path / "a.parquet", rows))
    assert shown(placed.sample) == [("What is ", "user"), 6, ("?", "user"), ("A dot.", "assistant")]
    assert shown(first.sample) == [7, ("\nWhat?", "user"), ("A dot.", "assistant")]


@pytest.mark.parametrize("column", ["caption", "text"])
def test_captions(column: str, tmp_path: Path):
    rows = [{"image": struct(8), column: "a dot"}, {"image": struct(8), column: None}, {"image": None, column: "b"}]
    good, *bad = assembled(write(tmp_path / "a.parquet", rows))
    assert good.kind == "caption"
    assert shown(good.sample) == [8, ("a dot", "")]
    assert bad == [damage.MISSING_CAPTION, damage.MISSING_IMAGE]


def test_interleaved_texts(tmp_path: Path):
    row = {"texts": [None, "one", None], "images": [struct(9), None, struct(10)]}
    (found,) = assembled(write(tmp_path / "a.parquet", [row]))
    assert found.kind == "page"
    assert shown(found.sample) == [9, ("one", ""), 10]


def test_pictures_by_path_lie_under_the_root(tmp_path: Path):
    (tmp_path / "8.png").write_bytes(picture(8))
    rows = [{"image": {"bytes": None, "path": name}, "text": "a"} for name in ("8.png", "9.png", "../8.png")]
    good, missing, climbing = assembled(write(tmp_path / "a.parquet", rows))
    assert good.sample.images == (Image(8, 8, picture(8)),)
    assert (missing, climbing) == (damage.MISSING_IMAGE, "member path climbs out")


def test_damaged_rows_cost_themselves(tmp_path: Path):
    turn = {"user": "a", "assistant": "b"}
    rows = [
        {"images": [struct(4)], "texts": [turn]},
        {"images": [{"bytes": b"no picture", "path": None}], "texts": [turn]},
        {"images": [{"bytes": None, "path": None}], "texts": [turn]},
        {"images": [struct(4)], "texts": None},
        {"images": [struct(4)], "texts": [{"user": "two <image> <image>", "assistant": "b"}]},
        {"images": [struct(4)], "texts": [{"user": "a", "assistant": None}]},
        {"images": [struct(4)], "texts": []},
        {"images": [None, struct(4)], "texts": [turn]},
    ]
    found = assembled(write(tmp_path / "a.parquet", rows))
    assert [one if isinstance(one, str) else one.kind for one in found] == [
        "conversation",
        damage.UNREADABLE_IMAGE,
        damage.MISSING_IMAGE,
        damage.MISSING_CAPTION,
        damage.PLACEHOLDER_MISMATCH,
        damage.NO_ASSISTANT_TEXT,
        damage.NO_ASSISTANT_TEXT,
        damage.MISSING_IMAGE,
    ]


def test_a_row_that_is_not_utf8_costs_itself(tmp_path: Path):
    texts = pa.array([b"one", b"\xff\xfe", b"three"], pa.binary()).view(pa.string())
    pictures = pa.array([picture(5)] * 3)
    pq.write_table(pa.table({"image": pictures, "text": texts}), tmp_path / "a.parquet")
    found = assembled(tmp_path / "a.parquet")
    assert [one if isinstance(one, str) else one.kind for one in found] == ["caption", damage.BAD_UTF8, "caption"]


@pytest.mark.parametrize("rows_per_piece", [1, 7, 16, 40, 1000])
@pytest.mark.parametrize("rows_per_group", [5, 17, 1000])
def test_pieces_hold_every_row_once(rows_per_piece: int, rows_per_group: int, tmp_path: Path):
    rows = [{"image": b"x", "text": str(number)} for number in range(60)]
    write(tmp_path / "a.parquet", rows[:33], rows_per_group)
    write(tmp_path / "deep" / "b.parquet", rows[33:], rows_per_group)
    write(tmp_path / "deep" / "empty.parquet", rows[:1], rows_per_group)
    pq.write_table(pa.table({"image": [b"x"], "text": ["x"]}).slice(0, 0), tmp_path / "deep" / "empty.parquet")
    pieces = list(hub.find_pieces(tmp_path, rows_per_piece))
    assert [piece.number for piece in pieces] == list(range(len(pieces)))
    assert all(0 < piece.num_rows <= rows_per_piece for piece in pieces)
    found = records(tmp_path, rows_per_piece)
    assert [(key, row["text"]) for key, row in found] == [(f"{number:09d}", str(number)) for number in range(60)]


def test_unknown_columns_are_listed(tmp_path: Path):
    for row in ({"prompt": "a", "picture": b"b"}, {"text": "no picture"}):
        write(tmp_path / "a.parquet", [row])
        with pytest.raises(DataError, match=f"columns {', '.join(row)}; forms that are read: .*FineVision.*messages"):
            list(hub.find_pieces(tmp_path / "a.parquet", 10))


def test_a_damaged_file_costs_itself(tmp_path: Path):
    rows = [{"image": picture(5), "text": str(number)} for number in range(3)]
    for name in ("a", "b", "c"):
        write(tmp_path / f"{name}.parquet", rows)
    (tmp_path / "b.parquet").write_bytes((tmp_path / "b.parquet").read_bytes()[:-9])
    found = records(tmp_path)
    assert [key for key, _ in found] == [*KEYS[:3], "b_parquet", *KEYS[3:]]
    error = found[3][1]
    assert isinstance(error, DamagedSampleError)
    assert error.reason == damage.BAD_PARQUET
    assert "b.parquet, all of it" in error.detail


def test_a_file_that_breaks_off_inside_names_what_is_lost(tmp_path: Path):
    rows = [{"image": picture(5), "text": f"{number:03d} " + "word " * 50} for number in range(64)]
    path = write(tmp_path / "a.parquet", rows, rows_per_group=16)
    data = bytearray(path.read_bytes())
    start = pq.ParquetFile(path).metadata.row_group(2).column(0).data_page_offset
    data[start : start + 24] = b"\xff" * 24
    path.write_bytes(data)
    found = records(path)
    *good, (key, error) = found
    assert [row["text"][:3] for _, row in good] == [f"{number:03d}" for number in range(32)]
    assert key == "000000032"
    assert isinstance(error, DamagedSampleError)
    assert "rows 32 to 63" in error.detail


def test_nothing_that_can_be_read(tmp_path: Path):
    with pytest.raises(DataError, match="there is none"):
        list(hub.find_pieces(tmp_path, 10))
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    for path in (tmp_path, tmp_path / "a.parquet"):
        with pytest.raises(DataError, match=r"none of 1 can be read, .*a\.parquet"):
            list(hub.find_pieces(path, 10))


def test_the_verb(tmp_path: Path):
    """A folder of parquet through `rebus shards`: a damaged file and a damaged row are in the quarantine."""
    rows = [{"image": struct(5), "caption": f"number {number}"} for number in range(6)]
    write(tmp_path / "in" / "a.parquet", [*rows, {"image": None, "caption": "lost"}])
    write(tmp_path / "in" / "b.parquet", rows)
    (tmp_path / "in" / "c.parquet").write_bytes(b"PAR1 and no more")
    recipe = ShardsRecipe(
        source="hub", input=tmp_path / "in", out=tmp_path / "out", samples_per_shard=4, max_bad_share=0.5, num_workers=1
    )
    summary = run(recipe)
    assert (summary.num_samples, summary.reasons) == (12, {damage.MISSING_IMAGE: 1, damage.BAD_PARQUET: 1})
    tars = sorted((tmp_path / "out").glob("*.tar"))
    texts = [part.text for tar in tars for _, sample in iterate(tar) for part in sample.parts if isinstance(part, Text)]
    assert texts == [f"number {number}" for number in (*range(6), *range(6))]
