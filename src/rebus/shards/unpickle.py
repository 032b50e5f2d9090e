"""Reads a pickle without running it: a small stack machine that builds plain values, pictures and arrays of numbers.

A pickle is a program; Python's own reader imports what it names and calls it. Here opcodes are only walked (the
standard library's pickletools), names are looked up in a fixed table of what this reader itself can build, and any
other name ends the reading. What is read: the packs of Open-Qwen2VL, that is lists and dicts of Pillow images and torch
tensors. Protocol: https://github.com/python/cpython/blob/main/Lib/pickletools.py.
"""

import io
import pickletools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rebus.errors import DataError
from rebus.pictures.decode import MAX_PIXELS
from rebus.shards.tensors import (
    STORAGES,
    TENSOR_NAMES,
    Storage,
    fill_storages,
    is_archive,
    rebuild_tensor,
    split_archive,
)

MAX_BYTES = 2**30  # of a file, and of all that a file's program makes; a pack of forty pictures has some 20 MB
MAX_STEPS = 4_000_000  # opcodes; a pack has some thousand
CHANNELS = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}


@dataclass
class Picture:
    """Raw pixels of a Pillow image, row by row. mode: a key of CHANNELS, or empty where the file gave no pixels."""

    mode: str = ""
    size: tuple[int, int] = (0, 0)
    data: bytes = b""


@dataclass(frozen=True)
class _Name:
    """A name of the table. builds: what this reader makes of it."""

    label: str
    builds: str


class _Opaque:
    """Stands for a value that nobody asks for, such as a resolution among a picture's facts."""


_MARK = object()

_PICTURES = ("PIL.Image.Image", "PIL.JpegImagePlugin.JpegImageFile", "PIL.PngImagePlugin.PngImageFile")
_OPAQUE = ("PIL.TiffImagePlugin.IFDRational", "fractions.Fraction", "PIL.PngImagePlugin.iTXt")
_BUILDS = {
    **dict.fromkeys((*_PICTURES, "PIL.WebPImagePlugin.WebPImageFile"), "picture"),
    **dict.fromkeys(_OPAQUE, "opaque"),
    **dict.fromkeys(STORAGES, "storage type"),
    **TENSOR_NAMES,
    "collections.OrderedDict": "dict",
    "_codecs.encode": "encoded",
    **{f"{module}.{kind}": kind for module in ("builtins", "__builtin__") for kind in ("set", "frozenset", "bytes")},
}
"""Every name that a file may use, and what is made of it here. Nothing is ever imported or called by name."""


def read_pickle(path: Path) -> Any:
    """The value in a pickle: None, bool, int, float, str, bytes, list, tuple, dict, set, Picture, numpy arrays.

    Values may contain themselves: walk them to a fixed depth only. Raises: DataError for a damaged file, for one of
    more than MAX_BYTES or MAX_STEPS, and for one that names anything else, with the name.
    """
    try:
        num_bytes = path.stat().st_size
        if num_bytes > MAX_BYTES:
            raise DataError(f"{path} has {num_bytes:,} bytes, the limit is {MAX_BYTES:,}.")
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    return parse_pickle(data, str(path))


def parse_pickle(data: bytes, place: str) -> Any:
    """As read_pickle. place: what errors call the data."""
    return _Machine(place, [0, 0]).run(io.BytesIO(data))


class _Machine:
    """One run over one pickle. spent: steps and bytes, together with the pickles inside of this one.

    storages: those that persistent ids name, None where a pickle may have none (only torch's own have).
    """

    def __init__(self, place: str, spent: list[int], storages: dict[str, Storage] | None = None) -> None:
        self.place, self.spent, self.storages = place, spent, storages
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, file: io.BytesIO) -> Any:
        """Reads one value; the file then stands behind it. Raises: DataError."""
        position = 0
        try:
            for opcode, argument, place in pickletools.genops(file):
                position = place or 0
                self._spend(1, 0)
                if opcode.name == "STOP":
                    return self._result()
                self._step(opcode.name, argument)
        except (ValueError, TypeError, IndexError, KeyError, OverflowError, Warning) as error:
            raise self._refusal(f"is no pickle that can be read (near byte {position}: {error!r:.200})") from error
        raise self._refusal("ends before its value does")

    def _result(self) -> Any:
        value = self.stack.pop()
        if self.stack or value is _MARK or isinstance(value, _Name):
            raise ValueError("no single value is left")
        return value

    def _refusal(self, why: str) -> DataError:
        return DataError(f"{self.place} {why}. Nothing of it was run.")

    def _spend(self, steps: int, num_bytes: int) -> None:
        self.spent[0] += steps
        self.spent[1] += num_bytes
        if self.spent[0] > MAX_STEPS or self.spent[1] > MAX_BYTES:
            raise self._refusal(f"makes more than {MAX_STEPS:,} values or {MAX_BYTES:,} bytes")

    def _step(self, name: str, argument: Any) -> None:
        if name in _VALUES:
            self.stack.append(argument)
        elif name in _NEW:
            self.stack.append(_NEW[name]())
        elif name in ("PROTO", "FRAME"):
            return
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[int(argument)])
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[int(argument)] = self._top()
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self._top()
        elif name == "GLOBAL":
            self.stack.append(self._look_up(*argument.split(" ", 1)))
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _METHODS:
            _METHODS[name](self)
        else:
            raise self._refusal(f"uses {name} {argument!r:.200}, which only running it could answer")

    def _top(self) -> Any:
        if self.stack[-1] is _MARK:
            raise ValueError("a value is missing")
        return self.stack[-1]

    def _pop(self) -> Any:
        value = self._top()
        self.stack.pop()
        return value

    def _pop_to_mark(self) -> list[Any]:
        start = len(self.stack) - 1
        while start >= 0 and self.stack[start] is not _MARK:
            start -= 1
        if start < 0:
            raise ValueError("no mark")
        values = self.stack[start + 1 :]
        del self.stack[start:]
        return values

    def _look_up(self, module: str, name: str) -> _Name:
        label = f"{module}.{name}"
        if label not in _BUILDS:
            raise self._refusal(f"names {label!r:.200}, which is not among what a pack holds")
        return _Name(label, _BUILDS[label])

    def stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise ValueError("a name that is no text")
        self.stack.append(self._look_up(module, name))

    def tuple_of(self, count: int) -> None:
        self.stack.append(tuple(reversed([self._pop() for _ in range(count)])))

    def append(self, values: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, list):
            raise TypeError("values for what is no list")
        target.extend(values)

    def new_dict(self) -> None:
        values = self._pop_to_mark()
        self.stack.append({})
        self.set_items(values)

    def set_items(self, values: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, dict) or len(values) % 2:
            raise TypeError("items for what is no dict")
        target.update(zip(map(_key, values[::2]), values[1::2], strict=True))

    def add_items(self, values: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, set):
            raise TypeError("members for what is no set")
        target.update(map(_key, values))

    def reduce(self) -> None:
        arguments, name = self._pop(), self._pop()
        if not isinstance(name, _Name) or not isinstance(arguments, tuple):
            raise TypeError("a call of what is no name")
        self.stack.append(self._make(name, arguments))

    def _make(self, name: _Name, arguments: tuple[Any, ...]) -> Any:
        match name.builds, arguments:
            case "opaque", _:
                return _Opaque()
            case "picture", ():
                return Picture()
            case ("dict", ()) | ("dict", ([],)):
                return {}
            case (("set" | "frozenset"), (list() as members,)):
                return frozenset(map(_key, members)) if name.builds == "frozenset" else set(map(_key, members))
            case "bytes", ():
                return b""
            case "encoded", (str() as text, "latin1"):
                self._spend(0, len(text))
                return text.encode("latin-1")
            case "storage", (bytes() as data,) if self.storages is None:
                return self._load_storage(data)
            case "tensor", (Storage() as storage, int() as offset, tuple() as size, tuple() as stride, *_):
                self._spend(0, len(storage.data))
                return rebuild_tensor(storage, offset, size, stride)
        raise self._refusal(f"calls {name.label} in a way that is not read")

    def new_object(self) -> None:
        arguments, name = self._pop(), self._pop()
        if not isinstance(name, _Name) or name.builds not in ("picture", "opaque"):
            raise TypeError("an object of what is no class")
        self.stack.append(self._make(name, arguments))

    def build(self) -> None:
        state, target = self._pop(), self._top()
        if isinstance(target, Picture) and not target.mode:
            _fill_picture(target, state)
        elif not isinstance(target, _Opaque):
            raise self._refusal(f"sets the state of a {type(target).__name__}")

    def persistent(self) -> None:
        match self._pop():
            case ("storage", _Name(builds="storage type") as kind, str() as key, str(), int() as count, *view) if (
                self.storages is not None and not any(view)
            ):
                self.stack.append(self.storages.setdefault(key, Storage(STORAGES[kind.label], count)))
            case _:
                raise self._refusal("refers to something outside of itself")

    def _load_storage(self, data: bytes) -> Storage:
        """The storage in what torch.save wrote, in its old form (pickles one after the other) or as a zip archive."""
        storages: dict[str, Storage] = {}
        self._spend(0, len(data))
        if is_archive(data):
            pickled, contents = split_archive(data)
            found = self._inner(storages).run(io.BytesIO(pickled))
            fill_storages(storages, contents)
        else:
            file = io.BytesIO(data)
            found = self._read_old(file, storages)
        if not isinstance(found, Storage):
            raise TypeError("no storage in a tensor")
        return found

    def _read_old(self, file: io.BytesIO, storages: dict[str, Storage]) -> Any:
        magic, _, system = (self._inner({}).run(file) for _ in range(3))
        if magic != 0x1950A86A20F9469CFC6C or not isinstance(system, dict) or system.get("little_endian") is not True:
            raise ValueError("a tensor that torch did not save on a common machine")
        found = self._inner(storages).run(file)
        keys = self._inner({}).run(file)
        contents = {}
        for key in map(_key, keys):
            count = int.from_bytes(file.read(8), "little", signed=True)
            contents[key] = file.read(storages[key].check_count(count))
        fill_storages(storages, contents)
        return found

    def _inner(self, storages: dict[str, Storage]) -> "_Machine":
        return _Machine(self.place, self.spent, storages)


def _key(value: Any) -> Any:
    """Hashing a tuple of tuples of tuples ... would follow them to any depth: plain values alone are keys."""
    if value is not None and not isinstance(value, str | int | float | bytes):
        raise TypeError(f"a {type(value).__name__} as a key")
    return value


def _fill_picture(picture: Picture, state: Any) -> None:
    """state: [facts, mode, (width, height), palette, pixels], and what classes of files add (Pillow's __getstate__)."""
    match state:
        case [_, str() as mode, (int() as width, int() as height), _, bytes() as data, *_] if mode in CHANNELS:
            if not (0 < width <= MAX_PIXELS and 0 < height <= MAX_PIXELS and width * height <= MAX_PIXELS):
                raise ValueError(f"a picture of {width} x {height} pixels")
            if len(data) != width * height * CHANNELS[mode]:
                raise ValueError(f"{len(data)} bytes for {width} x {height} pixels, {mode}")
            picture.mode, picture.size, picture.data = mode, (width, height), data
        case _:
            raise ValueError(f"a picture's state is not read; its pixels are to be {', '.join(CHANNELS)}")


_VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING"),
    *("SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES"),
    *("BINBYTES8", "BYTEARRAY8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "MARK": _MARK, "EMPTY_TUPLE": ()}
_NEW = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}
_METHODS: dict[str, Any] = {
    "STACK_GLOBAL": _Machine.stack_global,
    "REDUCE": _Machine.reduce,
    "NEWOBJ": _Machine.new_object,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent,
    "POP": lambda machine: machine.stack.pop(),
    "POP_MARK": lambda machine: machine._pop_to_mark(),
    "DUP": lambda machine: machine.stack.append(machine._top()),
    "TUPLE": lambda machine: machine.stack.append(tuple(machine._pop_to_mark())),
    "TUPLE1": lambda machine: machine.tuple_of(1),
    "TUPLE2": lambda machine: machine.tuple_of(2),
    "TUPLE3": lambda machine: machine.tuple_of(3),
    "LIST": lambda machine: machine.stack.append(machine._pop_to_mark()),
    "APPEND": lambda machine: machine.append([machine._pop()]),
    "APPENDS": lambda machine: machine.append(machine._pop_to_mark()),
    "DICT": _Machine.new_dict,
    "SETITEM": lambda machine: machine.set_items([machine._pop(), machine._pop()][::-1]),
    "SETITEMS": lambda machine: machine.set_items(machine._pop_to_mark()),
    "ADDITEMS": lambda machine: machine.add_items(machine._pop_to_mark()),
    "FROZENSET": lambda machine: machine.stack.append(frozenset(map(_key, machine._pop_to_mark()))),
}
