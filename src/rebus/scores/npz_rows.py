"""Single rows of the arrays in `.npz` files: DataComp keeps embeddings of ten thousand samples in each (b32_img,
l14_img, b32_txt, l14_txt), and a shard may need rows of many."""

import struct
import zipfile
from dataclasses import dataclass

import numpy as np

from rebus.errors import DataError, nearest
from rebus.storage import open_file, read_range, read_ranges

LOCAL_HEADER = 30  # bytes of a zip member's header before its name; the last four say how long name and extra are
MAX_WHOLE = 2  # compressed arrays kept: single rows of one cannot be read


@dataclass(frozen=True)
class Layout:
    """Where the rows of an array lie in its file. offset: byte of the first; -1 where they are compressed."""

    offset: int
    num_rows: int
    width: int
    dtype: np.dtype


class NpzRows:
    """One array, by name, in many `.npz` files on this machine or behind URLs. Nothing is unpickled."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._layouts: dict[str, Layout] = {}
        self._whole: dict[str, np.ndarray] = {}

    def layout(self, place: str) -> Layout:
        """Raises: DataError where the file has no such array, or it is not [rows, width] of floats."""
        if place not in self._layouts:
            self._layouts[place] = _find(place, self._name)
        return self._layouts[place]

    def read(self, place: str, rows: np.ndarray) -> np.ndarray:
        """[len(rows), width], in the order of `rows`."""
        layout = self.layout(place)
        if layout.offset < 0:
            return self._load(place)[rows]
        num_bytes = layout.width * layout.dtype.itemsize
        order = np.argsort(rows)
        offsets = (layout.offset + rows[order].astype(np.int64) * num_bytes).tolist()
        found = b"".join(read_ranges(place, offsets, [num_bytes] * len(rows)))
        if len(found) != num_bytes * len(rows):
            raise DataError(f"{place} ends inside '{self._name}'. Fetch it again.")
        taken = np.empty((len(rows), layout.width), dtype=layout.dtype)
        taken[order] = np.frombuffer(found, dtype=layout.dtype).reshape(-1, layout.width)
        return taken

    def _load(self, place: str) -> np.ndarray:
        if place not in self._whole:
            while len(self._whole) >= MAX_WHOLE:
                del self._whole[next(iter(self._whole))]
            with open_file(place) as file, np.load(file, allow_pickle=False) as archive:
                self._whole[place] = archive[self._name]
        return self._whole[place]


def _find(place: str, name: str) -> Layout:
    try:
        with open_file(place) as file, zipfile.ZipFile(file) as archive:
            known = [one.filename.removesuffix(".npy") for one in archive.infolist()]
            if name not in known:
                raise DataError(f"{place} has no array '{name}'{nearest(name, known)}; it has {', '.join(known)}.")
            info = archive.getinfo(f"{name}.npy")
            with archive.open(info) as member:
                version = np.lib.format.read_magic(member)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, is_fortran, dtype = read(member)
                header_bytes = member.tell()
    except (zipfile.BadZipFile, ValueError, EOFError) as error:
        raise DataError(f"{place} is no .npz file that can be read: {error}.") from error
    if len(shape) != 2 or dtype.kind != "f" or is_fortran:
        raise DataError(f"{place}: '{name}' is {dtype} {list(shape)}; vectors are floats [rows, width], row by row.")
    offset = -1
    if info.compress_type == zipfile.ZIP_STORED:
        lengths = struct.unpack("<HH", read_range(place, info.header_offset + LOCAL_HEADER - 4, 4))
        offset = info.header_offset + LOCAL_HEADER + sum(lengths) + header_bytes
    return Layout(offset, shape[0], shape[1], dtype)
