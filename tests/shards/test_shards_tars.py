"""Writer, walker, index and reader agree on every tar, whole or not, and on nothing but its content."""

import io
import itertools
import json
import tarfile
import zlib
from pathlib import Path

import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rebus.errors import DataError
from rebus.records import Damage, Image, Text, content_uid
from rebus.shards import assemble, damage, index, members
from rebus.shards.read import iterate, read_index, read_members, read_metadata, read_quarantine, read_sample
from rebus.shards.write import write_shard


def picture(size: tuple[int, int] = (5, 3), form: str = "PNG", colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", size, colour).save(buffer, form)
    return buffer.getvalue()


def caption(text: str = "a red square", size: tuple[int, int] = (5, 3)) -> dict[str, bytes]:
    return {"png": picture(size), "txt": text.encode(), "json": b'{"source": "test"}'}


def conversation(values: list[tuple[str, str]], num_images: int = 1) -> dict[str, bytes]:
    turns = [{"from": role, "value": value} for role, value in values]
    images = {f"{number}.png": picture((number + 2, 3)) for number in range(num_images)}
    return {**images, "json": json.dumps({"conversations": turns}).encode()}


GOOD_TURNS = [("human", "<image>\nWhat is it?"), ("gpt", "A square.")]

keys = st.lists(
    st.text(st.characters(codec="utf-8", exclude_characters="./\\\0:"), min_size=1, max_size=60), unique=True
)
texts = st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda text: text.strip() and "<image>" not in text)


@settings(max_examples=30, deadline=None)
@given(keys=keys, data=st.data())
def test_what_is_written_is_read(tmp_path_factory, keys, data):
    tar = tmp_path_factory.mktemp("shard") / "00000.tar"
    wanted = {key: caption(data.draw(texts)) for key in keys}
    write_shard(tar, wanted.items())
    index.write_index(tar)
    assert read_quarantine(tar) == []
    rows = read_index(tar).to_pylist()
    assert [row["key"] for row in rows] == keys
    for row in rows:
        sample = read_sample(tar, row)
        assert read_members(tar, row) == wanted[row["key"]]
        assert sample.parts == (Image(5, 3, picture()), Text(wanted[row["key"]]["txt"].decode()))
        assert read_metadata(tar, row) == {"source": "test"}
        assert (row["width"], row["height"], row["num_images"]) == (5, 3, 1)
        assert row["text_chars"] == len(wanted[row["key"]]["txt"].decode())
    assert [(row, sample.key) for row, sample in iterate(tar)] == [(row, row["key"]) for row in rows]


def test_other_tools_read_our_tars_and_the_offsets_are_theirs(tmp_path: Path):
    tar = tmp_path / "00000.tar"
    write_shard(tar, [("a", caption()), ("ü" * 90, caption("second")), ("c", caption("third"))])
    index.write_index(tar)
    with tarfile.open(tar) as archive:
        found = {member.name: member for member in archive}
        assert archive.extractfile("c.txt").read() == b"third"
        for row in read_index(tar).to_pylist():
            first, last = found[f"{row['key']}.png"], found[f"{row['key']}.json"]
            assert (row["offset"], row["offset"] + row["length"]) == (first.offset, last.offset_data + last.size)


def test_bytes_depend_on_samples_alone(tmp_path: Path, monkeypatch):
    write_shard(tmp_path / "a.tar", [("a", caption())])
    monkeypatch.setattr("time.time", lambda: 1e9)
    write_shard(tmp_path / "b.tar", [("a", dict(reversed(caption().items())))])
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    index.write_index(tmp_path / "a.tar")
    index.write_index(tmp_path / "b.tar")
    assert (tmp_path / "a.index.parquet").read_bytes() == (tmp_path / "b.index.parquet").read_bytes()


def test_a_failing_writer_leaves_nothing(tmp_path: Path):
    with pytest.raises(DataError, match="first dot"):
        write_shard(tmp_path / "a.tar", [("good", caption()), ("bad.key", caption())])
    assert list(tmp_path.iterdir()) == []


def bomb() -> bytes:
    data = bytearray(picture())
    data[16:24] = (30_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    return bytes(data)


DAMAGE = {
    damage.ZERO_BYTE_IMAGE: {**caption(), "png": b""},
    damage.UNREADABLE_IMAGE: {**caption(), "png": b"<html>404</html>"},
    damage.BOMB: {**caption(), "png": bomb()},
    damage.MISSING_IMAGE: {"txt": b"alone"},
    damage.SURPLUS_IMAGE: {**caption(), "jpg": picture(form="JPEG")},
    damage.MISSING_CAPTION: {"png": picture(), "json": b"{}"},
    damage.EMPTY_CAPTION: caption(" \n\t"),
    damage.OVERSIZED_CAPTION: caption("x" * (damage.MAX_CAPTION_CHARS + 1)),
    damage.PLACEHOLDER_IN_CAPTION: caption("an <image> of"),
    damage.BAD_UTF8: {**caption(), "txt": b"caf\xe9"},
    damage.BAD_JSON: {**caption(), "json": b'{"a": '},
    damage.PLACEHOLDER_MISMATCH: conversation(GOOD_TURNS, 2),
    damage.NO_ASSISTANT_TEXT: conversation([("human", "<image>"), ("gpt", " ")]),
    damage.UNKNOWN_ROLE: conversation([*GOOD_TURNS, ("robot", "beep")]),
}


@pytest.mark.parametrize("reason", DAMAGE)
def test_each_damage_is_named_and_costs_itself_alone(tmp_path: Path, reason: str):
    tar = tmp_path / "00000.tar"
    write_shard(tar, [("before", caption()), ("bad", DAMAGE[reason]), ("after", caption("another"))])
    table, damages = index.index_tar(tar)
    with tarfile.open(tar) as archive:
        offset = next(member.offset for member in archive if member.name.startswith("bad"))
    assert table["key"].to_pylist() == ["before", "after"]
    assert [(d.shard, d.key, d.offset, d.reason) for d in damages] == [("00000.tar", "bad", offset, reason)]


MORE_DAMAGE = [
    (conversation([("human", "What?"), ("gpt", "<image>")]), damage.PLACEHOLDER_MISMATCH),
    (conversation(GOOD_TURNS, 0), damage.PLACEHOLDER_MISMATCH),
    ({"json": b'{"conversations": 3}'}, damage.BAD_JSON),
    ({"json": b'{"conversations": [3]}'}, damage.BAD_JSON),
    ({"json": b'{"conversations": [{"from": "gpt", "value": null}]}'}, damage.BAD_JSON),
    ({"json": b"[1]"}, damage.BAD_JSON),
    ({"json": b"[" * 200_000}, damage.BAD_JSON),
    ({"json": b'"\xff"'}, damage.BAD_UTF8),
    ({"json": b'{"texts": "abc"}'}, damage.BAD_JSON),
    ({"json": b'{"texts": ["abc", null]}'}, damage.PLACEHOLDER_MISMATCH),
]


@pytest.mark.parametrize(("bad", "reason"), MORE_DAMAGE)
def test_odd_metadata_is_damage_not_a_crash(bad: dict[str, bytes], reason: str):
    with pytest.raises(damage.DamagedSampleError) as caught:
        assemble.assemble("key", "shard", bad)
    assert caught.value.reason == reason


def test_no_decoder_beyond_the_named_ones_runs():
    """An EPS file would start Ghostscript; it is refused by its header whatever it is called."""
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (4, 4)).save(buffer, "EPS")
    with pytest.raises(damage.DamagedSampleError, match=damage.UNREADABLE_IMAGE):
        assemble.assemble("key", "shard", {**caption(), "png": buffer.getvalue()})


def raw_tar(path: Path, entries: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for info, data in entries:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def entries_of(key: str, found: dict[str, bytes]) -> list[tuple[tarfile.TarInfo, bytes]]:
    return [(tarfile.TarInfo(f"{key}.{name}"), data) for name, data in found.items()]


@pytest.mark.parametrize("name", ["../evil.png", "/etc/evil.png", "a/../../evil.png", "..\\evil.png", "C:\\evil.png"])
def test_a_climbing_member_is_refused_by_name(tmp_path: Path, name: str):
    tar = tmp_path / "00000.tar"
    evil = (tarfile.TarInfo(name), picture())
    raw_tar(tar, [*entries_of("a", caption()), evil, *entries_of("b", caption())])
    table, damages = index.index_tar(tar)
    assert table["key"].to_pylist() == ["a", "b"]
    assert [(d.reason, d.detail) for d in damages] == [(members.CLIMBING_PATH, name)]


def test_a_link_is_refused_with_the_sample_it_belongs_to(tmp_path: Path):
    tar = tmp_path / "00000.tar"
    link = tarfile.TarInfo("b.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    folder = tarfile.TarInfo("images")
    folder.type = tarfile.DIRTYPE
    text = (tarfile.TarInfo("b.txt"), b"a caption")
    raw_tar(tar, [(folder, b""), *entries_of("a", caption()), text, (link, b""), *entries_of("c", caption())])
    table, damages = index.index_tar(tar)
    assert table["key"].to_pylist() == ["a", "c"]
    assert [(d.key, d.reason) for d in damages] == [("b", members.LINK)]


def test_the_first_of_two_samples_with_one_key_is_used(tmp_path: Path):
    tar = tmp_path / "00000.tar"
    raw_tar(tar, entries_of("a", caption("first")) + entries_of("a", caption("second")) + entries_of("b", caption()))
    table, damages = index.index_tar(tar)
    assert [(d.key, d.reason) for d in damages] == [("a", index.DUPLICATE_KEY)]
    assert table["key"].to_pylist() == ["a", "b"]
    assert read_sample(tar, table.to_pylist()[0]).parts[1] == Text("first")


def three(tmp_path: Path) -> tuple[Path, list[dict]]:
    tar = tmp_path / "00000.tar"
    write_shard(tar, [(key, caption(key)) for key in ("a", "b", "c")])
    return tar, index.index_tar(tar)[0].to_pylist()


@settings(max_examples=40, deadline=None)
@given(cut=st.integers(0, 10_239))
def test_a_truncated_tar_keeps_what_lies_before_the_cut(tmp_path_factory, cut: int):
    tar, rows = three(tmp_path_factory.mktemp("cut"))
    tar.write_bytes(tar.read_bytes()[:cut])
    table, damages = index.index_tar(tar)
    whole = [row["key"] for row in rows if row["offset"] + row["length"] <= cut]
    kept = table["key"].to_pylist()
    assert kept[: len(whole)] == whole
    # A caption whose json alone was cut off at a block's edge is a whole caption as far as anyone can tell.
    assert set(kept) - set(whole) <= {row["key"] for row in rows[len(whole) : len(whole) + 1]}
    end_mark = -(-(rows[-1]["offset"] + rows[-1]["length"]) // 512) * 512 + 512
    assert bool(damages) == (cut < end_mark)
    if cut < end_mark and damages:
        assert members.TRUNCATED_TAR in {damage.reason for damage in damages}


@settings(max_examples=60, deadline=None)
@given(position=st.integers(512, 10_239), flip=st.integers(1, 255))
def test_a_flipped_byte_costs_the_sample_it_is_in(tmp_path_factory, position: int, flip: int):
    """And the one before, where the byte is in the name of a sample's first member: whose it was is hidden then."""
    tar, rows = three(tmp_path_factory.mktemp("flip"))
    data = bytearray(tar.read_bytes())
    data[position] ^= flip
    tar.write_bytes(data)
    hit = [row["key"] for row in rows if row["offset"] <= position < row["offset"] + row["length"]]
    for before, after in itertools.pairwise(rows):
        if after["offset"] <= position < after["offset"] + 100:
            hit.append(before["key"])
    kept = index.index_tar(tar)[0]["key"].to_pylist()
    assert {"a", "b", "c"} - set(hit) <= set(kept)


def test_after_a_damaged_header_the_rest_is_found(tmp_path: Path):
    tar, rows = three(tmp_path)
    data = bytearray(tar.read_bytes())
    data[rows[1]["offset"] : rows[1]["offset"] + 512] = b"\xff" * 512
    tar.write_bytes(data)
    table, damages = index.index_tar(tar)
    assert table["key"].to_pylist() == ["c"]
    assert [(d.key, d.reason) for d in damages] == [("a", members.DAMAGED_TAR), ("b", damage.MISSING_IMAGE)]


def test_a_damaged_header_that_still_tells_its_name_costs_one_sample(tmp_path: Path):
    tar, rows = three(tmp_path)
    data = bytearray(tar.read_bytes())
    data[rows[1]["offset"] + 124] = 0xFF  # the size
    tar.write_bytes(data)
    table, damages = index.index_tar(tar)
    assert table["key"].to_pylist() == ["a", "c"]
    assert [(d.key, d.reason) for d in damages] == [("b", members.DAMAGED_TAR)]


def test_a_file_that_is_no_tar_is_one_damage(tmp_path: Path):
    tar = tmp_path / "00000.tar"
    tar.write_bytes(b"no tar at all " * 1000)
    table, damages = index.index_tar(tar)
    assert len(table) == 0
    assert [(d.key, d.offset, d.reason) for d in damages] == [("", -1, index.UNREADABLE_TAR)]


def test_names_that_are_not_utf8_are_damage(tmp_path: Path):
    tar = tmp_path / "00000.tar"
    raw_tar(tar, entries_of("a", caption()))
    data = bytearray(tar.read_bytes())
    data[0:1] = b"\xff"
    info = bytearray(data[:512])
    info[148:156] = b" " * 8
    data[148:156] = f"{sum(info):06o}\0 ".encode()
    tar.write_bytes(data)
    index.write_index(tar)
    assert members.BAD_NAME in {damage.reason for damage in read_quarantine(tar)}


def test_conversations_and_pages_keep_reading_order():
    turns = [("system", "Be brief."), ("human", "<image>\nand <image>?"), ("gpt", "Two.\n")]
    found = assemble.assemble("k", "s", conversation(turns, 2))
    kind, sample = found.kind, found.sample
    shapes = [part if isinstance(part, Text) else (part.width, part.role) for part in sample.parts]
    assert kind == "conversation"
    assert shapes == [
        Text("Be brief.", "system"), (2, "user"), Text("\nand ", "user"), (3, "user"), Text("?", "user"),
        Text("Two.\n", "assistant"),
    ]  # fmt: skip
    page = {"0.png": picture((7, 3)), "json": b'{"texts": ["one", null, "two"]}'}
    found = assemble.assemble("k", "s", page)
    kind, sample = found.kind, found.sample
    assert (kind, [part if isinstance(part, Text) else part.width for part in sample.parts]) == (
        "page", [Text("one"), 7, Text("two")],
    )  # fmt: skip


def test_messages_in_chat_form_are_the_same_conversation():
    content = [{"type": "image"}, {"type": "text", "text": "\nWhat is it?"}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "A square."}]
    chat = {"0.png": picture((2, 3)), "json": json.dumps({"messages": messages}).encode()}
    found, wanted = (assemble.assemble("k", "s", one).sample.parts for one in (chat, conversation(GOOD_TURNS)))
    assert found == wanted


def test_more_than_ten_images_keep_their_order():
    turns = [("human", "<image>" * 12), ("gpt", "Many.")]
    sample = assemble.assemble("k", "s", conversation(turns, 12)).sample
    assert [image.width for image in sample.images] == list(range(2, 14))


def test_uid_comes_from_the_source_or_from_the_content():
    given_uid = "0123456789ABCDEF" * 2
    named = {**caption(), "json": json.dumps({"uid": given_uid}).encode()}
    assert assemble.assemble("k", "s", named).sample.uid == given_uid.lower()
    odd = {**caption(), "json": b'{"uid": "17"}'}
    assert assemble.assemble("k", "s", odd).sample.uid == content_uid(picture(), b"a red square")


def test_a_tar_that_changed_after_its_index_is_refused(tmp_path: Path):
    tar, rows = three(tmp_path)
    write_shard(tar, [("x", caption())])
    for row in rows:
        with pytest.raises(DataError, match="run `rebus shards` again"):
            read_sample(tar, row)
    with pytest.raises(DataError, match="no index"):
        read_index(tar)


def test_quarantine_survives_any_key(tmp_path: Path):
    tar = tmp_path / "00000.tar"
    write_shard(tar, [("line\u2028break\n", {"txt": b"alone"})])
    index.write_index(tar)
    assert read_quarantine(tar) == [Damage("00000.tar", "line\u2028break\n", 0, damage.MISSING_IMAGE)]
