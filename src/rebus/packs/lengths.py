"""How long each kept sample is in tokens: one pass over a shard's text, no pixel read, a small table a shard."""

import gc
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rebus.fingerprint import fingerprint, write_atomically
from rebus.packs.cutting import Cut, Limits, Piece, cut_sample, longer_than_a_pack
from rebus.packs.holdout import UID_BYTES, is_held_out
from rebus.records import Damage, Sample
from rebus.selection.read import kept_rows
from rebus.shards.read import Index, iterate_texts, open_index
from rebus.tokens.config import TokensConfig
from rebus.tokens.encode import TOO_LONG, Count, UnusableSample, count_batch
from rebus.tokens.tokenizer import Tokens, load_tokens, tokens_fingerprint

NUM_TOGETHER = 512  # samples tokenised in one call
NUMBERS = ("row", "num_tokens", "num_images", "num_image_tokens", "num_patches", "first_part", "end_part")
SCHEMA = pa.schema([*((name, pa.int32()) for name in NUMBERS), ("uid", pa.binary(UID_BYTES))])
Item = TypeVar("Item")


@dataclass(frozen=True)
class Counting:
    """What is counted, and what is left out. limits: of a document. cut: those beyond them, instead of refusing them.

    Of shards that `write_kept_rows` wrote rows for, only these count. holdout, seed, part: see PackRecipe.
    """

    tokens: TokensConfig
    limits: Limits
    cut: bool = False
    holdout: float = 0.0
    holdout_seed: int = 0
    part: Literal["train", "heldout"] = "train"


@dataclass(frozen=True)
class Tally:
    """num_other: samples on the other side of the validation split. num_cut: samples that were cut into num_pieces
    documents; num_dropped: tokens of theirs that are in none."""

    num_other: int = 0
    num_cut: int = 0
    num_pieces: int = 0
    num_dropped: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))


@dataclass(frozen=True)
class Lengths:
    """All documents: columns int32 [n], uids uint8 [n, 16]; 48 bytes each, so ten million take 0.5 GB.

    columns: `shard` (place in the list of shards) and NUMBERS.
    """

    columns: dict[str, np.ndarray]
    uids: np.ndarray
    tally: Tally

    def __len__(self) -> int:
        return len(self.uids)


def count_shard(shard: Path, *, counting: Counting, out: Path) -> Path:
    """Writes `length_table(out, shard)` with a row a document, and beside it the unusable samples (.jsonl).

    Returns the table's path at once where both exist: the stage goes on where it was stopped.
    """
    path = length_table(out, shard)
    if not path.is_file():
        index = open_index(shard)
        rows, num_other = _rows_to_count(index, counting, out)
        table, damages = _count_rows(index, rows, counting, num_other)
        write_atomically(path.with_suffix(".jsonl"), "".join(damage_line(one) + "\n" for one in damages))
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        pq.write_table(table, temporary)
        os.replace(temporary, path)
    return path


def length_table(out: Path, shard: Path) -> Path:
    """Where the lengths of a shard go; shards of two folders may share a name, so the folder is hashed into it."""
    return out / f"{shard.stem}-{fingerprint(str(shard.parent))[:8]}.parquet"


def damage_line(damage: Damage) -> str:
    return json.dumps(asdict(damage))  # ASCII: a key may hold what some readers take for the end of a line


def write_kept_rows(selection: Path, out: Path, shards: Sequence[Path]) -> None:
    """Parts a selection by shard, once, so that no worker has to read the whole of it."""
    places = {shard.name: shard for shard in shards}
    nothing: list[tuple[str, list[int]]] = [(name, []) for name in places]
    for name, rows in chain(nothing, kept_rows(selection)):
        temporary = out / f".{name}.{os.getpid()}.npy"
        np.save(temporary, np.array(rows, np.int32))
        os.replace(temporary, _rows_path(out, places[name]))


def read_lengths(paths: Sequence[Path]) -> Lengths:
    """Reads the tables into arrays made once at their full size: joining tables would hold all of it twice."""
    sizes = [pq.read_metadata(path).num_rows for path in paths]
    columns = {name: np.empty(sum(sizes), np.int32) for name in ("shard", *NUMBERS)}
    uids = np.empty((sum(sizes), UID_BYTES), np.uint8)
    tally, start = Tally(), 0
    for number, (path, size) in enumerate(zip(paths, sizes, strict=True)):
        table = pq.read_table(path)
        tally += Tally(**json.loads(table.schema.metadata[b"tally"]))
        stretch = slice(start, start + size)
        columns["shard"][stretch] = number
        for name in NUMBERS:
            columns[name][stretch] = table[name].to_numpy()
        for chunk in table["uid"].chunks:
            uids[start : start + len(chunk)] = uid_bytes(chunk)
            start += len(chunk)
    return Lengths(columns, uids, tally)


def uid_array(uids: np.ndarray) -> pa.Array:
    """uint8 [n, 16] as a column of fixed_size_binary(16)."""
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(UID_BYTES), len(uids), [None, pa.py_buffer(uids.tobytes())])


def uid_bytes(chunk: pa.Array) -> np.ndarray:
    """A column of fixed_size_binary(16) as uint8 [n, 16]."""
    data = np.frombuffer(chunk.buffers()[1] or b"", np.uint8)
    return data.reshape(-1, UID_BYTES)[chunk.offset : chunk.offset + len(chunk)]


def _rows_path(out: Path, shard: Path) -> Path:
    return length_table(out, shard).with_suffix(".npy")


def _rows_to_count(index: Index, counting: Counting, out: Path) -> tuple[np.ndarray, int]:
    """The rows of this plan's side of the split, int [n] in order, and how many are on the other side."""
    kept = _rows_path(out, index.shard)
    rows = np.load(kept) if kept.is_file() else np.arange(index.num_samples)
    if counting.holdout == 0:
        return rows, 0
    held = is_held_out(_parse_uids(index)[rows], counting.holdout, counting.holdout_seed)
    wanted = rows[held == (counting.part == "heldout")]
    return wanted, len(rows) - len(wanted)


def _parse_uids(index: Index) -> np.ndarray:
    """uint8 [samples, 16] of the index's hex digits."""
    return np.frombuffer(bytes.fromhex("".join(index.uids.to_pylist())), np.uint8).reshape(-1, UID_BYTES)


def _count_rows(index: Index, rows: np.ndarray, counting: Counting, num_other: int) -> tuple[pa.Table, list[Damage]]:
    tokens = _load_tokens(counting.tokens, tokens_fingerprint(counting.tokens))
    lines: list[tuple[int, ...]] = []
    damages: list[Damage] = []
    tally = Tally(num_other)
    for row, outcome in _judge(index, rows, counting, tokens):
        if isinstance(outcome, Damage):
            damages.append(outcome)
            continue
        if outcome.pieces[0].end_part >= 0:
            tally += Tally(0, 1, len(outcome.pieces), outcome.num_dropped)
        lines += [_line(row, piece) for piece in outcome.pieces]
    numbers = np.array(lines, np.int32).reshape(-1, len(NUMBERS))
    columns: list[pa.Array] = [pa.array(np.ascontiguousarray(numbers[:, i])) for i in range(len(NUMBERS))]
    uids = uid_array(_parse_uids(index)[numbers[:, 0]])
    schema = SCHEMA.with_metadata({"tally": json.dumps(asdict(tally))})
    return pa.Table.from_arrays([*columns, uids], schema=schema), damages


@lru_cache(maxsize=1)
def _load_tokens(config: TokensConfig, _fingerprint: str) -> Tokens:
    """Once a process: a tokenizer of 2 MB takes 0.3 s to load, as long as it takes to count 3,000 samples.

    What is loaded by then lives to the end, so the collector need not walk it again and again: 10% faster.
    """
    tokens = load_tokens(config)
    gc.freeze()
    return tokens


def _line(row: int, piece: Piece) -> tuple[int, ...]:
    one = piece.counted
    sizes = (one.num_tokens, one.num_images, one.num_image_tokens, one.num_patches)
    return (row, *sizes, piece.first_part, piece.end_part)


def _judge(index: Index, rows: np.ndarray, counting: Counting, tokens: Tokens) -> Iterator[tuple[int, Cut | Damage]]:
    """Yields every row with the documents that it makes, or what is wrong with it."""
    for together in _batched(iterate_texts(index.shard, rows.tolist()), NUM_TOGETHER):
        samples = [sample for _, sample in together if isinstance(sample, Sample)]
        counted = iter(count_batch(samples, tokens))
        for row, sample in together:
            if isinstance(sample, Damage):
                yield row, sample
                continue
            try:
                yield row, _documents(sample, next(counted), counting, tokens)
            except UnusableSample as error:
                offset = int(index.offsets[row])
                yield row, Damage(index.shard.name, sample.key, offset, error.reason, error.detail)


def _documents(sample: Sample, counted: Count | UnusableSample, counting: Counting, tokens: Tokens) -> Cut:
    """Raises: UnusableSample."""
    if isinstance(counted, Count) and counting.limits.hold(counted):
        return Cut((Piece(counted),))
    if isinstance(counted, UnusableSample) and not (counting.cut and counted.reason == TOO_LONG):
        raise counted
    if counting.cut:
        return cut_sample(sample, tokens, counting.limits)
    assert isinstance(counted, Count)
    raise longer_than_a_pack(counted, counting.limits)


def _batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
