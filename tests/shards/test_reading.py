"""Quick readers say what the slow ones say: headers, members of a sample, texts without pictures."""

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rebus.errors import DataError, StrangerError
from rebus.records import Damage, Image, Text
from rebus.shards import members, read
from rebus.shards.index import SCHEMA, read_groups, write_index, write_tables
from rebus.shards.link import Link, write_link
from rebus.shards.read import (
    _stretches,
    iterate,
    iterate_texts,
    open_index,
    read_index,
    read_quarantine,
    read_sample,
)
from rebus.shards.write import write_shard
from rebus.storage import MAX_GAP, file_version
from tiny_samples import tiny_picture


def tar_bytes(entries: list[tuple[str, bytes, bytes]], form: int) -> bytes:
    """entries: name, type, content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, kind, content in entries:
            info = tarfile.TarInfo(name)
            info.type, info.size = kind, len(content)
            info.linkname = "elsewhere" if kind == tarfile.SYMTYPE else ""
            info.mode, info.uid, info.mtime, info.uname = 0o755, 1000, 1_700_000_000, "somebody"
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


names = st.one_of(
    st.sampled_from(["a.jpg", "a.txt", "A.TXT", "./a.json", "a", "ab.txt", "b.txt", "../a.txt", "/a.txt", "x/a.txt"]),
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=120),
)
kinds = st.sampled_from([tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE])
forms = st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
entries = st.lists(st.tuples(names, kinds, st.binary(max_size=1200)), max_size=6)


def slowly(data: bytes, key: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The members by walking, every header judged by tarfile."""
    with monkeypatch.context() as patch:
        patch.setattr(members, "plain_header", lambda block: None)
        walked = [one for one in members.walk_members(io.BytesIO(data), len(data)) if one.key == key and not one.fault]
    return {one.extension: data[one.data_offset : one.end] for one in walked}


@settings(max_examples=200, deadline=None)
@given(entries=entries, form=forms, flips=st.lists(st.tuples(st.integers(0), st.integers(1, 255)), max_size=2))
def test_quick_and_slow_members_are_the_same(entries, form, flips):
    """Of whole archives and of damaged ones."""
    try:
        data = bytearray(tar_bytes(entries, form))
    except ValueError:
        return  # ustar has no room for such a name
    for place, flip in flips:
        data[place % len(data)] ^= flip
    with pytest.MonkeyPatch.context() as monkeypatch:
        for key in {"a", *(name.removeprefix("./") for name, *_ in entries)}:
            assert members.split_members(bytes(data), key) == slowly(bytes(data), key, monkeypatch)


@given(flips=st.lists(st.tuples(st.integers(0, 511), st.integers(1, 255)), min_size=1, max_size=4))
def test_a_damaged_header_is_never_plain(flips):
    header = bytearray(tar_bytes([("name.txt", tarfile.REGTYPE, b"")], tarfile.USTAR_FORMAT)[:512])
    assert members.plain_header(bytes(header)) == ("name.txt", 0)
    for place, flip in flips:
        header[place] ^= flip
    found = members.plain_header(bytes(header))
    if found is not None:
        info = tarfile.TarInfo.frombuf(bytes(header), "utf-8", "surrogateescape")
        assert found == (info.name, info.size)


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """Captions of changing length, pictures between them that are larger than what is read for nothing."""
    samples = [
        {"png": tiny_picture("red", (10 + n, 20)) + bytes(2 * MAX_GAP), "txt": f"caption {n} ".encode() * (n + 1)}
        for n in range(30)
    ]
    write_shard(tmp_path / "00000.tar", ((f"{n:03d}", one) for n, one in enumerate(samples)))
    write_index(tmp_path / "00000.tar")
    return tmp_path / "00000.tar"


def without_pictures(sample):
    parts = [Image(part.width, part.height) if isinstance(part, Image) else part for part in sample.parts]
    return sample.key, sample.uid, sample.source, tuple(parts)


def test_texts_are_the_samples_without_pictures(shard: Path):
    wanted = [without_pictures(sample) for _, sample in iterate(shard)]
    found = list(iterate_texts(shard))
    assert [number for number, _ in found] == list(range(30))
    assert [(s.key, s.uid, s.source, s.parts) for _, s in found] == wanted
    some = [3, 4, 17, 29]
    assert [(n, sample) for n, sample in iterate_texts(shard, some)] == [found[n] for n in some]
    assert list(iterate_texts(shard, [])) == []


def test_reading_in_small_batches_changes_nothing(shard: Path, monkeypatch):
    wanted = list(iterate_texts(shard))
    monkeypatch.setattr("rebus.shards.read.NUM_READ", 7)
    assert list(iterate_texts(shard)) == wanted


def test_samples_are_read_in_stretches_and_none_is_lost(shard: Path, monkeypatch):
    wanted = list(iterate(shard))
    assert [row["key"] for row, _ in wanted] == [f"{n:03d}" for n in range(30)]
    for limit in (1, 20_000, 60_000):
        monkeypatch.setattr("rebus.shards.read.MAX_SPAN", limit)
        assert list(iterate(shard)) == wanted


@given(lengths=st.lists(st.integers(0, 10)))
def test_stretches_hold_every_sample_once_and_keep_the_limit(lengths):
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("rebus.shards.read.MAX_SPAN", 10)
        parts = [lengths[part] for part in _stretches(lengths)]
    assert [length for part in parts for length in part] == lengths
    assert all(sum(part) <= 10 for part in parts)


def test_damage_since_the_index_is_found(shard: Path):
    """In the tar's headers, in the text and in the picture's header; a neighbour is untouched."""
    index = open_index(shard)
    groups = list(read_groups(shard))
    data = bytearray(shard.read_bytes())
    data[groups[2].offset + 3] ^= 1  # the name
    data[groups[5].text_offset + 512] = 0xFF  # the caption
    data[groups[8].offset + 512] ^= 1  # the picture's first byte
    shard.write_bytes(data)
    for row in (2, 5, 8):
        with pytest.raises(DataError, match="changed after it was indexed"):
            read_sample(shard, index.place(row), index.link)
    for row in (1, 3, 6, 9):
        assert read_sample(shard, index.place(row), index.link).key == f"{row:03d}"
    texts = dict(iterate_texts(shard))
    assert texts[5] == Damage("00000.tar", "005", groups[5].offset, "bad UTF-8", texts[5].detail)
    assert not isinstance(texts[2], Damage), "planning does not read the picture's header"
    data[groups[7].text_offset] ^= 1
    shard.write_bytes(data)
    assert dict(iterate_texts(shard))[7].reason == "not in the tar"


def test_a_json_that_no_caption_needs_costs_nothing_in_planning(tmp_path: Path):
    tar = tmp_path / "00000.tar"
    uid = "0123456789abcdef" * 2
    write_shard(tar, [("a", {"png": tiny_picture(), "txt": b"words", "json": json.dumps({"uid": uid}).encode()})])
    write_index(tar)
    assert [(sample.uid, sample.parts[1]) for _, sample in iterate_texts(tar)] == [(uid, Text("words"))]


def test_planning_reads_the_caption_and_not_the_picture_beside_it(tmp_path: Path):
    """img2dataset writes members in the order of their names: a PNG stands between json and txt."""
    content = [("json", b"{}"), ("png", tiny_picture()), ("txt", b"words"), ("zip", bytes(9999))]
    entries = [(f"{key}.{extension}", tarfile.REGTYPE, data) for key in "ab" for extension, data in content]
    (tmp_path / "00000.tar").write_bytes(tar_bytes(entries, tarfile.USTAR_FORMAT))
    write_index(tmp_path / "00000.tar")
    assert read_index(tmp_path / "00000.tar")["text_length"].to_pylist() == [512 + len(b"words")] * 2
    assert [sample.parts[1] for _, sample in iterate_texts(tmp_path / "00000.tar")] == [Text("words")] * 2


def test_half_characters_are_damage_that_no_tokenizer_meets(tmp_path: Path):
    turns = [{"from": "human", "value": "\ud83d?"}, {"from": "gpt", "value": "Yes. \U0001f600"}]
    both = [json.dumps({"conversations": part}).encode() for part in (turns, [{**turns[0], "value": "?"}, turns[1]])]
    write_shard(tmp_path / "00000.tar", [(f"{number}", {"json": one}) for number, one in enumerate(both)])
    write_index(tmp_path / "00000.tar")
    assert [(one.key, one.reason) for one in read_quarantine(tmp_path / "00000.tar")] == [("0", "bad UTF-8")]
    assert [sample.parts[1].text for _, sample in iterate_texts(tmp_path / "00000.tar")] == ["Yes. \U0001f600"]


def test_texts_that_carry_pictures_are_read_some_megabytes_at_a_time(shard: Path, monkeypatch):
    wanted = list(iterate_texts(shard))
    held = []
    real = read.read_ranges
    monkeypatch.setattr(read, "read_ranges", lambda *places: held.append(sum(places[2])) or real(*places))
    monkeypatch.setattr(read, "MAX_SPAN", 4096)
    assert list(iterate_texts(shard)) == wanted
    assert len(held) > 5
    assert max(held) <= 4096


@pytest.mark.parametrize("version", [None, {"rebus_index": "1"}])
def test_an_index_of_another_version_is_refused(shard: Path, version: dict | None):
    table = read_index(shard)
    pq.write_table(table.replace_schema_metadata(version), shard.with_suffix(".index.parquet"))
    for reader in (read_index, open_index, lambda one: list(iterate(one)), lambda one: list(iterate_texts(one))):
        with pytest.raises(StrangerError, match="Run `rebus shards` again"):
            reader(shard)


def linked_rows(folder: Path, records: list[dict | bytes]) -> Path:
    """A link to rows of a JSONL, indexed by hand: every row has one picture of 40 x 30."""
    table, rows, offset = folder / "rows.jsonl", [], 0
    with open(table, "wb") as file:
        for number, record in enumerate(records):
            line = record if isinstance(record, bytes) else json.dumps(record).encode()
            place = {"offset": offset, "length": len(line), "text_offset": offset, "text_length": len(line)}
            names = {"key": f"{number:03d}", "uid": f"{number:032x}", "kind": "conversation", "notes": ""}
            sizes = {"width": 40, "height": 30, "num_images": 1, "text_chars": 0, "image_sizes": [40, 30]}
            rows.append({**names, **place, **sizes})
            offset += file.write(line + b"\n")
    shard = folder / "00000.link"
    write_link(shard, Link(str(table), "rows", "conversations", str(folder), file_version(str(table))))
    write_tables(shard, pa.Table.from_pylist(rows, SCHEMA), [])
    return shard


def turns(question: str, answer: str) -> dict:
    return {
        "image": "a.png",
        "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}],
    }


def test_linked_rows_are_read_as_texts_and_as_samples(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(tiny_picture("red", (40, 30)))
    shard = linked_rows(tmp_path, [turns(f"<image>\nWhat is {n}?", f"A square, {n}.") for n in range(5)])
    index = open_index(shard)
    for row, text in iterate_texts(shard):
        sample = read_sample(shard, index.place(row), index.link)
        assert without_pictures(sample)[:3] == (text.key, text.uid, text.source)
        assert sample.images[0].data == tiny_picture("red", (40, 30))
        assert [part for part in text.parts if isinstance(part, Text)] == [
            Text(f"\nWhat is {row}?", "user"), Text(f"A square, {row}.", "assistant"),
        ]  # fmt: skip
        assert [(image.width, image.height, image.data) for image in text.images] == [(40, 30, None)]


def test_a_bad_linked_row_costs_itself_alone(tmp_path: Path):
    shard = linked_rows(tmp_path, [turns("<image>a?", "b"), b'{"conversations": ', turns("no picture", "b")])
    found = [one for _, one in iterate_texts(shard)]
    assert [one.reason if isinstance(one, Damage) else one.key for one in found] == [
        "000", "bad JSON", "placeholder count mismatch",
    ]  # fmt: skip


def test_an_empty_index_is_read(tmp_path: Path):
    write_shard(tmp_path / "00000.tar", [])
    write_index(tmp_path / "00000.tar")
    assert list(iterate_texts(tmp_path / "00000.tar")) == []
    assert open_index(tmp_path / "00000.tar").num_samples == read_index(tmp_path / "00000.tar").num_rows == 0
