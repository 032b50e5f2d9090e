"""Tensors of torch inside a pickle, as numpy arrays; torch itself is never imported.

A tensor is a view (offset, size, stride) of a storage, which torch.save writes by itself: in its old form a row of
pickles and then raw numbers, in its new one a zip archive with one file a storage.
"""

import io
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

MAX_COUNT = 2**27  # numbers of a storage: a gibibyte of int64
STORAGES = {
    "torch.LongStorage": "<i8",
    "torch.IntStorage": "<i4",
    "torch.ShortStorage": "<i2",
    "torch.CharStorage": "<i1",
    "torch.ByteStorage": "<u1",
    "torch.BoolStorage": "?",
    "torch.HalfStorage": "<f2",
    "torch.FloatStorage": "<f4",
    "torch.DoubleStorage": "<f8",
    "torch.UntypedStorage": "<u1",
    "torch.storage.UntypedStorage": "<u1",
}
TENSOR_NAMES = {"torch._utils._rebuild_tensor_v2": "tensor", "torch.storage._load_from_bytes": "storage"}


@dataclass
class Storage:
    """Numbers side by side. dtype: numpy's name. count: numbers. data: empty until their bytes are read."""

    dtype: str
    count: int
    data: bytes = b""

    def check_count(self, count: int) -> int:
        """The bytes of `count` numbers. Raises: ValueError where the storage has another number of them."""
        if count != self.count or not 0 <= count <= MAX_COUNT:
            raise ValueError("a storage of another length than its tensor says")
        return count * np.dtype(self.dtype).itemsize


def fill_storages(storages: Mapping[str, Storage], contents: Mapping[str, bytes]) -> None:
    """Raises: ValueError, KeyError where the bytes of a storage are missing."""
    for key, storage in storages.items():
        if len(contents[key]) != storage.check_count(storage.count):
            raise ValueError("a storage is cut off")
        storage.data = contents[key]


def is_archive(data: bytes) -> bool:
    return data.startswith(b"PK\x03\x04")


def split_archive(data: bytes) -> tuple[bytes, dict[str, bytes]]:
    """The pickle in a zip of torch.save, and the bytes of its storages by key. Raises: ValueError."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError("a tensor whose archive is compressed: torch does not do that")
            found = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    except (zipfile.BadZipFile, KeyError, NotImplementedError, RuntimeError, OSError, EOFError) as error:
        raise ValueError(f"a tensor whose archive is damaged: {error}") from error
    except (struct.error, zlib.error, OverflowError, IndexError) as error:
        raise ValueError(f"a tensor whose archive is damaged: {error}") from error
    if found.get("byteorder", b"little") != b"little" or "data.pkl" not in found:
        raise ValueError("a tensor whose archive holds no data.pkl, or numbers of another byte order")
    return found["data.pkl"], {name.removeprefix("data/"): found[name] for name in found if name.startswith("data/")}


def rebuild_tensor(storage: Storage, offset: int, size: tuple[Any, ...], stride: tuple[Any, ...]) -> np.ndarray:
    """A copy of the view. Raises: ValueError where it leaves the storage or repeats its numbers."""
    numbers = np.frombuffer(storage.data, dtype=storage.dtype)
    steps = (*size, *stride, offset)
    if len(size) != len(stride) or len(size) > 8:
        raise ValueError("a tensor with other strides than sides")
    if not all(isinstance(step, int) and 0 <= step <= MAX_COUNT for step in steps):
        raise ValueError("a tensor whose sides are no sizes")
    count = int(np.prod([float(side) for side in size]))
    last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True)) if count else offset
    if count > len(numbers) or last >= len(numbers) + (not count):
        raise ValueError("a tensor that reaches beyond its storage")
    strides = [step * numbers.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(numbers[offset:], size, strides).copy()
