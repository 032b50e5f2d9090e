"""Reads shards through their index: one seek and one read a sample, wherever the data lies."""

import importlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rebus.errors import DataError, StrangerError
from rebus.pictures.decode import decode_image
from rebus.records import Damage, Image, Sample
from rebus.shards.assemble import assemble, parse_json
from rebus.shards.cache import ShardCache
from rebus.shards.damage import UNDECODABLE_IMAGE, DamagedSampleError
from rebus.shards.index import SCHEMA, index_path, quarantine_path
from rebus.shards.link import Link, read_link
from rebus.shards.members import split_members
from rebus.storage import MAX_SPAN, read_range, read_ranges

NUM_READ = 512  # samples of which the text is read at once


@dataclass(frozen=True)
class Index:
    """An opened index: what loading takes, as arrays [N]; 16 bytes a sample and its key.

    link: where the data lies. keys, uids: Arrow strings. offsets, lengths: int64 [N].
    """

    shard: Path
    link: Link
    keys: pa.Array
    uids: pa.Array
    offsets: np.ndarray
    lengths: np.ndarray

    @property
    def num_samples(self) -> int:
        return len(self.offsets)

    def place(self, row: int) -> dict[str, Any]:
        """What `read_sample` needs of a row."""
        return {
            "key": self.keys[row].as_py(),
            "uid": self.uids[row].as_py(),
            "offset": int(self.offsets[row]),
            "length": int(self.lengths[row]),
        }


def read_index(shard: Path, columns: list[str] | None = None) -> pa.Table:
    """The index of a shard: one row a usable sample, in the data's order. columns: of shards.index.SCHEMA; None: all.

    Raises: DataError where the shard was never indexed; StrangerError where another version of Rebus did it.
    """
    path = index_path(shard)
    if not path.is_file():
        raise DataError(f"{shard} has no index beside it. Make one: `rebus shards` with `source: tars`.")
    try:
        with pq.ParquetFile(path) as file:
            found, wanted = file.schema_arrow.metadata, SCHEMA.metadata
            if found != wanted:
                raise StrangerError(
                    f"{path} was made by another version of Rebus: it says {found}, {wanted} is read. "
                    "Run `rebus shards` again."
                )
            return file.read(columns)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is no index ({error}). Delete it and run `rebus shards` again.") from error


def open_index(shard: Path) -> Index:
    """Raises: DataError where there is no index; StrangerError where linked data changed since it was made."""
    table = read_index(shard, ["key", "uid", "offset", "length"]).combine_chunks()
    columns = {name: _one_chunk(table[name]) for name in table.column_names}
    return Index(
        shard,
        read_link(shard),
        columns["key"],
        columns["uid"],
        columns["offset"].to_numpy(),
        columns["length"].to_numpy(),
    )


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks else pa.array([], column.type)


def read_quarantine(shard: Path) -> list[Damage]:
    """What the index left out, and why."""
    path = quarantine_path(shard)
    if not path.is_file():
        raise DataError(f"{shard} has no quarantine file beside it. Make it: `rebus shards` with `source: tars`.")
    return read_damages(path)


def read_damages(path: Path) -> list[Damage]:
    """The records of any quarantine file."""
    return [Damage(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def read_members(shard: Path, row: Mapping[str, Any]) -> dict[str, bytes]:
    """The members of one sample, extension -> bytes. row: its row of the index.

    Raises: DataError where the data no longer holds the sample there.
    """
    link = read_link(shard)
    return _members(shard, link, row, _read(link, row, None))


def members_of(shard: Path, link: Link, row: Mapping[str, Any], blob: bytes) -> dict[str, bytes]:
    """The same from the bytes of the sample, for who reads those of many at once. Raises: DataError."""
    return _members(shard, link, row, blob)


def read_sample(
    shard: Path, row: Mapping[str, Any], link: Link | None = None, cache: ShardCache | None = None
) -> Sample:
    """One sample, images encoded. link: of the shard, where it was read before. cache: where remote data is fetched to
    whole; None reads the one range. Raises: DataError."""
    link = link or read_link(shard)
    return _assemble(shard, link, row, _read(link, row, cache))


def _read(link: Link, row: Mapping[str, Any], cache: ShardCache | None) -> bytes:
    if cache is None:
        return read_range(link.data, row["offset"], row["length"])
    return cache.read_ranges(link.data, [row["offset"]], [row["length"]], link.version)[0]


def read_metadata(shard: Path, row: Mapping[str, Any]) -> dict[str, Any]:
    """The sample's json, empty where it has none. Raises: DataError."""
    members = read_members(shard, row)
    return parse_json(members["json"]) if "json" in members else {}


def iterate(shard: Path) -> Iterator[tuple[dict[str, Any], Sample]]:
    """Yields (index row, sample) for every usable sample, in the data's order, read some megabytes at a time."""
    return ((row, make()) for row, make in iterate_lazily(shard))


def iterate_lazily(shard: Path) -> Iterator[tuple[dict[str, Any], Callable[[], Sample]]]:
    """As `iterate`, the bytes read but not yet taken apart: another thread may call what makes the sample."""
    link = read_link(shard)
    rows = read_index(shard).to_pylist()
    for part in _stretches([row["length"] for row in rows]):
        together = rows[part]
        blobs = read_ranges(link.data, [row["offset"] for row in together], [row["length"] for row in together])
        for row, blob in zip(together, blobs, strict=True):
            yield row, partial(_assemble, shard, link, row, blob)


def _stretches(lengths: Sequence[int]) -> Iterator[slice]:
    """Cuts neighbours into stretches of MAX_SPAN bytes, or of one sample where it is longer."""
    first, num_bytes = 0, 0
    for number, length in enumerate(lengths):
        if num_bytes and num_bytes + length > MAX_SPAN:
            yield slice(first, number)
            first, num_bytes = number, 0
        num_bytes += length
    yield slice(first, len(lengths))


def iterate_texts(shard: Path, rows: Sequence[int] | None = None) -> Iterator[tuple[int, Sample | Damage]]:
    """Yields (row, sample without the bytes of its pictures) for the wanted rows, or what is wrong with one.

    Only the bytes of the text are read, the pictures' sizes come from the index: what planning needs of ten million
    samples without reading terabytes. rows: in ascending order; None takes all.
    """
    link = read_link(shard)
    text_of = _described if link.layout == "rows" else _split_text
    describe = _source(link).describe if link.layout == "rows" else None
    for number, key, uid, offset, images, blob in _text_places(shard, link, rows):
        try:
            members, metadata = text_of(key, blob, describe)
            sample = assemble(key, shard.name, members, metadata=metadata, images=images, uid=uid).sample
        except DamagedSampleError as error:
            yield number, Damage(shard.name, key, offset, error.reason, error.detail)
        else:
            yield number, sample


def _described(key: str, blob: bytes, describe: Any) -> tuple[dict[str, bytes], dict[str, Any]]:
    """What the json of a record says once it is converted; no picture is opened."""
    return {}, describe(parse_json(blob))


def _split_text(key: str, blob: bytes, _: Any) -> tuple[dict[str, bytes], dict[str, Any] | None]:
    """The json beside a caption says nothing that planning asks: the index has its uid, and judged the rest."""
    members = _split_tar(key, blob)
    return members, {} if "txt" in members else None


def _text_places(
    shard: Path, link: Link, rows: Sequence[int] | None
) -> Iterator[tuple[int, str, str, int, list[Image], bytes]]:
    """(row, key, uid, offset, pictures without data, bytes of the text), NUM_READ rows read at a time."""
    names = ["key", "uid", "offset", "text_offset", "text_length", "image_sizes"]
    table = read_index(shard, names)
    numbers = np.arange(table.num_rows) if rows is None else np.asarray(rows, dtype=np.int64)
    for start in range(0, len(numbers), NUM_READ):
        part = numbers[start : start + NUM_READ]
        batch = table.take(pa.array(part))
        keys, uids, offsets, text_offsets, text_lengths = (batch[name].to_pylist() for name in names[:5])
        places = zip(part.tolist(), keys, uids, offsets, _sized(batch["image_sizes"]), strict=True)
        for stretch in _stretches(text_lengths):  # a page that carries its pictures has megabytes of text
            for blob in read_ranges(link.data, text_offsets[stretch], text_lengths[stretch]):
                yield *next(places), blob


def _sized(column: pa.ChunkedArray) -> Iterator[list[Image]]:
    """Pictures of which only the sizes are known, from the index' list of widths and heights a row."""
    sides = iter(column.combine_chunks().flatten().to_pylist())
    for number in pc.list_value_length(column).to_pylist():
        yield [Image(next(sides), next(sides)) for _ in range(number // 2)]


def undecodable(shard: Path, offset: int, sample: Sample) -> Damage | None:
    """Decodes every picture of a sample: what an index, which reads headers alone, cannot see."""
    for number, image in enumerate(sample.images):
        try:
            decode_image(image.data or b"")
        except ValueError as error:
            return Damage(shard.name, sample.key, offset, UNDECODABLE_IMAGE, f"image {number}: {error}")
    return None


def _members(shard: Path, link: Link, row: Mapping[str, Any], blob: bytes) -> dict[str, bytes]:
    try:
        if link.layout == "rows":
            return _build(link, blob)
        if len(blob) != row["length"]:
            raise DamagedSampleError("not in the tar", f"{len(blob)} bytes of {row['length']}")
        return _split_tar(row["key"], blob)
    except DamagedSampleError as error:
        raise _stale(shard, row, str(error)) from error


def _split_tar(key: str, blob: bytes) -> dict[str, bytes]:
    found = split_members(blob, key)
    if not found:
        raise DamagedSampleError("not in the tar", "the sample is not there")
    return found


def _assemble(shard: Path, link: Link, row: Mapping[str, Any], blob: bytes) -> Sample:
    members = _members(shard, link, row, blob)
    try:
        return assemble(row["key"], shard.name, members, uid=row["uid"]).sample
    except DamagedSampleError as error:
        raise _stale(shard, row, str(error)) from error


def _build(link: Link, blob: bytes) -> dict[str, bytes]:
    """The members that converting this record would write."""
    return _source(link).build(parse_json(blob), Path(link.root))


def _source(link: Link) -> Any:
    return importlib.import_module(f"rebus.shards.sources.{link.source}")


def _stale(shard: Path, row: Mapping[str, Any], why: str) -> DataError:
    where = f"{shard}, sample '{row['key']}' at byte {row['offset']}"
    return DataError(
        f"{where}: {why}. The data changed after it was indexed (or, with `check_images: false`, nobody looked); "
        "run `rebus shards` again."
    )
