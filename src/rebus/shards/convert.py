"""Records of a converting source -> tars, shard by shard. The records are first cut into one small file a shard, so
that any number of processes, and a run after a kill, find the same records in the same shard.
"""

import functools
import importlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from rebus.engine import map_shards
from rebus.errors import DataError
from rebus.fingerprint import fingerprint, write_atomically
from rebus.records import Damage
from rebus.shards.assemble import assemble
from rebus.shards.damage import DamagedSampleError
from rebus.shards.index import is_indexed, write_index
from rebus.shards.write import write_shard

CHUNKS = ".chunks"
_COMPLETE = "complete"


def tree_fingerprint(root: Path) -> str:
    """Names and sizes of all files under a folder: bytes would take as long as the conversion itself."""
    if not root.is_dir():
        raise DataError(f"no folder at {root}. Set `root` to the folder that image paths start from.")
    sizes = {}
    for folder, _, files in os.walk(root):
        for name in files:
            path = Path(folder, name)
            if path.exists():
                sizes[path.relative_to(root).as_posix()] = path.stat().st_size
    return fingerprint(sizes)


def convert(source: str, table: Path, root: Path, out: Path, samples_per_shard: int, num_workers: int) -> list[Path]:
    """Writes and indexes every shard that is not there yet. Returns the tars."""
    records = importlib.import_module(f"rebus.shards.sources.{source}").read_records(table)
    chunks = _cut(records, out / CHUNKS, samples_per_shard)
    if not chunks:
        raise DataError(f"{table} holds no record.")
    function = functools.partial(convert_chunk, source=source, root=root, out=out)
    tars = map_shards(function, chunks, description="shards", num_workers=num_workers)
    shutil.rmtree(out / CHUNKS)
    return tars


def _cut(records: Iterable[dict[str, Any] | DamagedSampleError], folder: Path, size: int) -> list[Path]:
    if not (folder / _COMPLETE).is_file():
        rows = enumerate(records)
        for number, chunk in enumerate(iter(lambda: list(islice(rows, size)), [])):
            lines = [json.dumps(_as_json(row, record)) + "\n" for row, record in chunk]
            write_atomically(folder / f"{number:05d}.jsonl", "".join(lines))
        write_atomically(folder / _COMPLETE, "")
    return sorted(folder.glob("*.jsonl"))


def _as_json(row: int, record: dict[str, Any] | DamagedSampleError) -> dict[str, Any]:
    if isinstance(record, DamagedSampleError):
        return {"row": row, "reason": record.reason, "detail": record.detail}
    return {"row": row, "record": record}


def convert_chunk(chunk: Path, *, source: str, root: Path, out: Path) -> Path:
    """Writes the tar of one chunk and its index. A record that cannot be used never enters the tar."""
    tar = out / f"{chunk.stem}.tar"
    if not is_indexed(tar):
        damages: list[Damage] = []
        write_shard(tar, _build(chunk, source, root, tar.name, damages))
        write_index(tar, damages)
    return tar


def _build(
    chunk: Path, source: str, root: Path, shard: str, damages: list[Damage]
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yields (key, members) of the good records; appends the others to `damages`, offset -1: they are in no tar."""
    module = importlib.import_module(f"rebus.shards.sources.{source}")
    with open(chunk, encoding="utf-8") as file:
        for line in file:
            entry = json.loads(line)
            key = f"{entry['row']:09d}"
            try:
                if "reason" in entry:
                    raise DamagedSampleError(entry["reason"], entry["detail"])
                members = module.build(entry["record"], root)
                assemble(key, shard, members)
            except DamagedSampleError as error:
                where = f"record {entry['row'] + 1} of the table"
                damages.append(Damage(shard, key, -1, error.reason, f"{where}: {error.detail}".rstrip(": ")))
            else:
                yield key, members
