"""Files that name uids: DataComp's .npy, with its header or as a raw memory map, text, parquet, a selection of ours."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rebus.errors import DataError
from rebus.fingerprint import file_fingerprint, read_manifest
from rebus.uids import UID, uids_as_numbers

MAGIC = b"\x93NUMPY"
FORMS = ".npy of u8,u8 (with or without header), .txt of hexadecimal uids, .parquet with a column uid, or a selection"


def read_uids(path: Path) -> NDArray[np.void]:
    """Every uid that a file names, [N] u8,u8 in its order, as often as it stands there.

    Raises: DataError where there is no such file, or it is none of these.
    """
    file = _file_of(path)
    match file.suffix:
        case ".npy":
            return _read_npy(file)
        case ".txt":
            return uids_as_numbers(_read_lines(file))
        case ".parquet":
            return uids_as_numbers(_read_column(file))
    raise DataError(f"{path} is no file of uids that Rebus reads: {FORMS}.")


def uids_fingerprint(path: Path) -> str:
    """Of the bytes that `read_uids` would read."""
    return file_fingerprint(_file_of(path))


def _file_of(path: Path) -> Path:
    if path.is_dir():
        read_manifest(path, "selection")
        return path / "uids.npy"
    if not path.is_file():
        raise DataError(f"no file of uids at {path}. A path with spaces or with one of | & ^ ( ) stands in quotes.")
    return path


def _read_npy(path: Path) -> NDArray[np.void]:
    with open(path, "rb") as file:
        has_header = file.read(len(MAGIC)) == MAGIC
    if not has_header:
        return _read_raw(path)
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise DataError(f"{path} is no .npy of uids ({error}).") from error
    kinds = [array.dtype[name] for name in array.dtype.names or ()]
    if array.ndim != 1 or [(kind.kind, kind.itemsize) for kind in kinds] != [("u", 8), ("u", 8)]:
        raise DataError(
            f"{path} holds {array.dtype} of shape {array.shape}; uids are [N] records of two uint64 (u8,u8)."
        )
    if array.dtype == UID:
        return np.array(array)
    numbers = np.empty(len(array), dtype=UID)
    for own, theirs in zip(("f0", "f1"), array.dtype.names or (), strict=True):
        numbers[own] = array[theirs]
    return numbers


def _read_raw(path: Path) -> NDArray[np.void]:
    size = path.stat().st_size
    if size % UID.itemsize:
        raise DataError(f"{path} has no header, and its {size:,} bytes are no whole number of uids of {UID.itemsize}.")
    return np.fromfile(path, dtype=UID)


def _read_lines(path: Path) -> pa.ChunkedArray:
    """One uid a line; empty lines and white space around do not count."""
    if not path.stat().st_size:
        return pa.chunked_array([], pa.string())
    try:
        table = csv.read_csv(
            path,
            read_options=csv.ReadOptions(column_names=["uid"]),
            parse_options=csv.ParseOptions(delimiter="\x01", quote_char=False),
            convert_options=csv.ConvertOptions(column_types={"uid": pa.string()}, strings_can_be_null=False),
        )
    except pa.ArrowInvalid as error:
        raise DataError(f"{path} is no text of one uid a line ({error}).") from error
    lines = pc.utf8_trim_whitespace(table["uid"])
    return lines.filter(pc.not_equal(lines, ""))


def _read_column(path: Path) -> pa.ChunkedArray:
    try:
        names = pq.read_schema(path).names
        if "uid" not in names:
            raise DataError(f"{path} has no column uid; it has {', '.join(names)}.")
        return pq.read_table(path, columns=["uid"])["uid"].cast(pa.string())
    except pa.ArrowInvalid as error:
        raise DataError(f"{path} is no parquet of uids ({error}).") from error
