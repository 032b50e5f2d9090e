"""Reads shards through their index: one seek and one read a sample."""

import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rebus.errors import DataError
from rebus.pictures import decode_image
from rebus.records import Damage, Sample
from rebus.shards.assemble import UNDECODABLE_IMAGE, DamagedSampleError, assemble, parse_json
from rebus.shards.index import index_path, quarantine_path
from rebus.shards.members import walk_members


def read_index(tar: Path) -> pa.Table:
    """The index of a shard: one row a usable sample, in tar order (columns: shards.index.SCHEMA).

    Raises: DataError where the shard was never indexed.
    """
    path = index_path(Path(tar))
    if not path.is_file():
        raise DataError(f"{tar} has no index beside it. Make one: `rebus shards` with `source: tars`.")
    try:
        return pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is no index ({error}). Delete it and run `rebus shards` again.") from error


def read_quarantine(tar: Path) -> list[Damage]:
    """What the index left out, and why."""
    path = quarantine_path(Path(tar))
    if not path.is_file():
        raise DataError(f"{tar} has no quarantine file beside it. Make it: `rebus shards` with `source: tars`.")
    return read_damages(path)


def read_damages(path: Path) -> list[Damage]:
    """The records of any quarantine file."""
    return [Damage(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def read_members(tar: Path, row: Mapping[str, Any]) -> dict[str, bytes]:
    """The members of one sample, extension -> bytes. row: its row of the index.

    Raises: DataError where the tar no longer holds the sample there.
    """
    with open(tar, "rb") as file:
        file.seek(row["offset"])
        return _split(Path(tar), row, file.read(row["length"]))


def read_sample(tar: Path, row: Mapping[str, Any]) -> Sample:
    """One sample, images encoded. Raises: DataError."""
    return _assemble(Path(tar), row, read_members(tar, row))


def read_metadata(tar: Path, row: Mapping[str, Any]) -> dict[str, Any]:
    """The sample's json, empty where it has none. Raises: DataError."""
    members = read_members(tar, row)
    return parse_json(members["json"]) if "json" in members else {}


def iterate(tar: Path) -> Iterator[tuple[dict[str, Any], Sample]]:
    """Yields (index row, sample) for every usable sample, in tar order, over one open file."""
    rows = read_index(tar).to_pylist()
    with open(tar, "rb") as file:
        for row in rows:
            file.seek(row["offset"])
            yield row, _assemble(Path(tar), row, _split(Path(tar), row, file.read(row["length"])))


def undecodable(tar: Path, offset: int, sample: Sample) -> Damage | None:
    """Decodes every picture of a sample: what an index, which reads headers alone, cannot see."""
    for number, image in enumerate(sample.images):
        try:
            decode_image(image.data or b"")
        except ValueError as error:
            return Damage(tar.name, sample.key, offset, UNDECODABLE_IMAGE, f"image {number}: {error}")
    return None


def _split(tar: Path, row: Mapping[str, Any], blob: bytes) -> dict[str, bytes]:
    members = walk_members(io.BytesIO(blob), len(blob))
    found = {m.extension: blob[m.data_offset : m.end] for m in members if m.key == row["key"] and not m.fault}
    if not found or len(blob) != row["length"]:
        raise _stale(tar, row, "the sample is not there")
    return found


def _assemble(tar: Path, row: Mapping[str, Any], members: Mapping[str, bytes]) -> Sample:
    try:
        return assemble(row["key"], tar.name, members)[1]
    except DamagedSampleError as error:
        raise _stale(tar, row, str(error)) from error


def _stale(tar: Path, row: Mapping[str, Any], why: str) -> DataError:
    where = f"{tar}, sample '{row['key']}' at byte {row['offset']}"
    return DataError(f"{where}: {why}. The tar changed after it was indexed; run `rebus shards` again.")
