"""A pickle is read as data: what packs hold comes back whole, and nothing that a file asks for is ever run."""

import fractions
import io
import os
import pickle
import struct
from collections import OrderedDict
from pathlib import Path

import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rebus.errors import DataError
from rebus.shards import unpickle
from rebus.shards.unpickle import Picture, parse_pickle, read_pickle

PROTOCOLS = (2, 3, 4, 5)


def pack(protocol: int = 4) -> bytes:
    image = PIL.Image.effect_noise((7, 5), 90).convert("RGB")
    image.info = {"dpi": (72, 72), "exif": b"Exif", "resolution": fractions.Fraction(1, 3)}
    ids = torch.tensor([151666, -200, 198, 9707, 151645])
    return pickle.dumps({"image_tensors": [image, image.copy()], "input_ids": ids, "lengths": [148]}, protocol)


GOOD = {protocol: pack(protocol) for protocol in PROTOCOLS}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_pack_comes_back(protocol: int):
    wanted = pickle.loads(GOOD[protocol])
    found = parse_pickle(GOOD[protocol], "pack")
    assert list(found) == ["image_tensors", "input_ids", "lengths"]
    assert found["input_ids"].tolist() == [151666, -200, 198, 9707, 151645]
    assert found["lengths"] == [148]
    for picture, image in zip(found["image_tensors"], wanted["image_tensors"], strict=True):
        assert (picture.mode, picture.size) == ("RGB", (7, 5))
        assert picture.data == image.tobytes()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_values(protocol: int):
    values = [
        None,
        True,
        False,
        0,
        -1,
        255,
        70_000,
        2**40,
        -(2**80),
        1.5,
        "ä\n",
        "x" * 300,
        b"",
        b"\xff",
        [],
        [1],
        (),
        (1,),
    ]
    values += [(1, 2), (1, 2, 3), (1, 2, 3, 4), {}, {"a": [1]}, {1, 2}, frozenset({"a"}), OrderedDict(), "", [[[[]]]]]
    assert parse_pickle(pickle.dumps(values, protocol), "p") == values
    shared = ["again"]
    first, second = parse_pickle(pickle.dumps([shared, shared], protocol), "p")
    assert first is second


def test_modes_and_plugin_classes():
    for mode in ("L", "LA", "RGBA"):
        image = PIL.Image.new(mode, (3, 2), 7)
        assert parse_pickle(pickle.dumps(image), "p") == Picture(mode, (3, 2), image.tobytes())
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (3, 2), "red").save(buffer, "JPEG", dpi=(300, 300))
    image = PIL.Image.open(buffer)
    image.load()
    assert parse_pickle(pickle.dumps(image), "p") == Picture("RGB", (3, 2), image.tobytes())
    with pytest.raises(DataError, match="pixels are to be L, LA, RGB, RGBA"):
        parse_pickle(pickle.dumps(PIL.Image.new("CMYK", (3, 2))), "p")


def malicious(marker: Path) -> dict[str, bytes]:
    """Programs that make the file `marker` when they run, one for every way that a pickle has."""
    call = f"touch {marker}"
    text = struct.pack("<I", len(call)) + call.encode()
    argument = b"X" + text + b"\x85"  # the command in a tuple
    return {
        "REDUCE": b"\x80\x02cposix\nsystem\n" + argument + b"R.",
        "STACK_GLOBAL": b"\x80\x04\x8c\x05posix\x8c\x06system\x93" + argument + b"R.",
        "INST": b"(X" + text + b"iposix\nsystem\n.",
        "OBJ": b"(cposix\nsystem\nX" + text + b"o.",
        "NEWOBJ": b"\x80\x02cposix\nsystem\n" + argument + b"\x81.",
        "NEWOBJ_EX": b"\x80\x04cposix\nsystem\n" + argument + b"}\x92.",
        "BUILD": b"\x80\x02cbuiltins\neval\n)\x81}X\x0c\x00\x00\x00__setstate__cposix\nsystem\nsb" + argument + b"b.",
        "BUILD picture": b"\x80\x02cPIL.Image\nImage\n)\x81}X\x0c\x00\x00\x00__setstate__X" + text + b"sb.",
        "nested name": b"\x80\x04\x8c\x05torch\x8c\x09os.system\x93" + argument + b"R.",
        "getattr": b"\x80\x04cbuiltins\ngetattr\ncos\nos\nX\x06\x00\x00\x00system\x86R" + argument + b"R.",
        "storage in storage": pickle.dumps(_Loaded(b"\x80\x02cposix\nsystem\n" + argument + b"R.")),
        "EXT1": b"\x80\x02\x82\x01" + argument + b"R.",
        "EXT2": b"\x80\x02\x83\x01\x00" + argument + b"R.",
        "EXT4": b"\x80\x02\x84\x01\x00\x00\x00" + argument + b"R.",
        "PERSID": b"Pposix.system\n.",
        "BINPERSID": b"X" + text + b"Q.",
        "find_class": b"cfractions\nFraction\n" + argument + b"Rb.",
    }


class _Loaded:
    def __init__(self, content: bytes):
        self.content = content

    def __reduce__(self):
        return torch.storage._load_from_bytes, (self.content,)


@pytest.mark.parametrize("way", list(malicious(Path("m"))))
def test_nothing_runs(way: str, tmp_path: Path):
    marker = tmp_path / "ran"
    (tmp_path / "bad.pkl").write_bytes(malicious(marker)[way])
    with pytest.raises(DataError) as caught:
        read_pickle(tmp_path / "bad.pkl")
    assert not marker.exists()
    assert "bad.pkl" in str(caught.value)
    if way in ("REDUCE", "STACK_GLOBAL", "NEWOBJ", "NEWOBJ_EX", "OBJ", "storage in storage"):
        assert "posix.system" in str(caught.value)


def test_the_programs_are_real(tmp_path: Path):
    """The same bytes do run in Python's own reader: else the test above would show nothing."""
    marker = tmp_path / "ran"
    for way in ("REDUCE", "STACK_GLOBAL", "INST", "OBJ"):
        pickle.loads(malicious(marker)[way])
        assert marker.exists(), way
        marker.unlink()


class _Command:
    def __reduce__(self):
        return os.system, ("true",)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_command_inside_of_a_pack(protocol: int):
    """os.system is called posix.system, deep inside of otherwise good data."""
    data = pickle.dumps({"image_tensors": [], "lengths": [3, [_Command()]]}, protocol)
    with pytest.raises(DataError, match=r"posix\.system"):
        parse_pickle(data, "p")


BOUNDS = {
    "no end": b"\x80\x04]",
    "nothing": b"",
    "stop alone": b".",
    "two values": b"\x80\x02]].",
    "a mark": b"(.",
    "no mark": b"\x80\x02]e.",
    "memo": b"h\x05.",
    "a huge string": b"\x8d" + struct.pack("<Q", 2**63 - 1) + b"a.",
    "a long number": b"L" + b"9" * 5000 + b"L\n.",
    "a list as a key": b"}]K\x01s.",
    "a deep tuple as a key": b"}" + b")" + b"\x85" * 300_000 + b"K\x01s.",
    "a name alone": b"\x80\x02cPIL.Image\nImage\n.",
    "append to an int": b"K\x01K\x02a.",
    "state of a list": b"]}b.",
    "a name that is no text": b"\x80\x04K\x01K\x02\x93.",
    "latin-1": b"\x80\x02c_codecs\nencode\nX\x03\x00\x00\x00\xe2\x82\xacX\x06\x00\x00\x00latin1\x86R.",
    "another encoding": b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00zip\x86R.",
    "a picture with arguments": b"\x80\x02cPIL.Image\nImage\nK\x01\x85\x81.",
}


@pytest.mark.parametrize("case", list(BOUNDS))
def test_damage_is_an_error_and_no_crash(case: str):
    with pytest.raises(DataError, match="case"):
        parse_pickle(BOUNDS[case], "case")


def test_deep_nesting_is_held(monkeypatch):
    """Lists in lists in lists are read: nothing here walks them."""
    value = parse_pickle(b"]" * 50_000 + b"a" * 49_999 + b".", "p")
    depth = 0
    while value:
        value, depth = value[0], depth + 1
    assert depth == 49_999


def test_what_a_program_makes_is_bounded(monkeypatch, tmp_path: Path):
    monkeypatch.setattr(unpickle, "MAX_BYTES", 10_000)
    monkeypatch.setattr(unpickle, "MAX_STEPS", 1000)
    with pytest.raises(DataError, match="makes more than"):
        parse_pickle(b"]" * 2000 + b".", "p")
    again = b"h\x01" + b"X\x06\x00\x00\x00latin1\x86R0"
    name = b"\x80\x02c_codecs\nencode\nq\x00X\xe8\x03\x00\x00" + b"a" * 1000 + b"q\x01"
    with pytest.raises(DataError, match="makes more than"):
        parse_pickle(name + b"0" + (b"h\x00" + again) * 50 + b"N.", "p")
    (tmp_path / "large.pkl").write_bytes(b"]." + bytes(20_000))
    with pytest.raises(DataError, match="the limit is 10,000"):
        read_pickle(tmp_path / "large.pkl")
    with pytest.raises(DataError, match="cannot be read"):
        read_pickle(tmp_path / "none.pkl")


@pytest.mark.parametrize(
    "size",
    [(0, 5), (-7, -5), (7, 6), (2**70, 2**70), (True, 5.0), (7,), (10**9, 10**9)],
)
def test_a_picture_of_another_size(size: tuple):
    class Forged:
        def __reduce__(self):
            return PIL.Image.Image, (), [{}, "RGB", size, None, b"\0" * 105]

    with pytest.raises(DataError):
        parse_pickle(pickle.dumps(Forged()), "p")


def outcome(data: bytes) -> None:
    """Anything but a value or a DataError fails the test."""
    try:
        parse_pickle(data, "p")
    except DataError:
        return


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes):
    outcome(data)


@settings(max_examples=150)
@given(st.sampled_from(PROTOCOLS), st.data())
def test_mutated_packs(protocol: int, data: st.DataObject):
    bytes_ = bytearray(GOOD[protocol])
    for _ in range(data.draw(st.integers(1, 4))):
        bytes_[data.draw(st.integers(0, len(bytes_) - 1))] = data.draw(st.integers(0, 255))
    outcome(bytes(bytes_))


@given(st.sampled_from(PROTOCOLS), st.data())
def test_truncated_packs(protocol: int, data: st.DataObject):
    end = data.draw(st.integers(0, len(GOOD[protocol]) - 1))
    with pytest.raises(DataError):
        parse_pickle(GOOD[protocol][:end], "p")


OPCODES = [
    b"(",
    b"]",
    b"}",
    b")",
    b"N",
    b"K\x05",
    b"e",
    b"u",
    b"a",
    b"s",
    b"t",
    b"d",
    b"l",
    b"0",
    b"1",
    b"2",
    b"R",
    b"b",
    b"\x81",
]
OPCODES += [
    b"q\x00",
    b"h\x00",
    b"\x94",
    b"\x85",
    b"\x87",
    b"\x8f",
    b"\x90",
    b"\x91",
    b"Q",
    b"\x92",
    b"o",
    b"C\x02ab",
    b"U\x02ab",
]
OPCODES += [b"cPIL.Image\nImage\n", b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch.storage\n_load_from_bytes\n"]
OPCODES += [b"c_codecs\nencode\n", b"cbuiltins\nset\n", b"X\x06\x00\x00\x00latin1", b"ctorch\nLongStorage\n", b"."]


@settings(max_examples=300)
@given(st.lists(st.sampled_from(OPCODES), max_size=30))
def test_any_program(program: list[bytes]):
    outcome(b"".join(program) + b".")
