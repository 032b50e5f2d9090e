"""The samples that a selection judges: the index of every shard, joined with its scores by uid."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rebus.errors import ConfigError, DataError, nearest
from rebus.shards.read import read_index, read_quarantine
from rebus.uids import UID, places_of, uids_as_numbers

INDEX_COLUMNS = ("width", "height", "num_images", "text_chars")
QUARANTINE = "quarantine"


@dataclass(frozen=True)
class Column:
    """One column over the pool, 9 bytes a sample (5 for words).

    values: [N] float64 (NaN: no score), uint64, or int32 numbers into `words` (object [K], None at its end).
    scored: [N] whether there is a value. single: the table holds float32.
    """

    values: NDArray
    scored: NDArray[np.bool_]
    words: NDArray[np.object_] | None = None
    single: bool = False


@dataclass(frozen=True)
class Pool:
    """N samples over all shards, those of the index's quarantine last in their shard with row -1 and no uid.

    shard: [N] number in `tars`; row: [N] in that shard's index; keys: [N] Arrow strings; uids: [N] u8,u8, zeros where
    there is none; damaged: [N]; columns: as the rules name them; vectors: name -> (scorer, column), read when asked
    for. 42 bytes a sample and its key, and the columns: 0.6 GB for ten million.
    """

    tars: list[Path]
    scores: Path | None
    shard: NDArray[np.int64]
    row: NDArray[np.int64]
    keys: pa.ChunkedArray
    uids: NDArray[np.void]
    damaged: NDArray[np.bool_]
    columns: dict[str, Column] = field(default_factory=dict)
    vectors: dict[str, tuple[str, str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.row)


def load_pool(tars: list[Path], scores: Path | None, columns: Iterable[str], vectors: Iterable[str] = ()) -> Pool:
    """Reads what the rules need and no other column. columns, vectors: as the recipe names them.

    Raises: ConfigError where a name means nothing or two things; DataError where a scorer did not see a shard.
    """
    places = {column: find_column(scores, tars, column) for column in dict.fromkeys(columns)}
    vector_places = {name: find_column(scores, tars, name, ".vectors") for name in dict.fromkeys(vectors)}
    pieces = [_load_shard(number, tar, scores, places) for number, tar in enumerate(tars)]
    return Pool(
        tars=tars,
        scores=scores,
        shard=np.concatenate([piece.shard for piece in pieces]),
        row=np.concatenate([piece.row for piece in pieces]),
        keys=pa.chunked_array([chunk for piece in pieces for chunk in piece.keys.chunks], pa.string()),
        uids=np.concatenate([piece.uids for piece in pieces]),
        damaged=np.concatenate([piece.damaged for piece in pieces]),
        columns={name: _join(name, [piece.columns[name] for piece in pieces]) for name in places},
        vectors=vector_places,
    )


def find_column(scores: Path | None, tars: list[Path], column: str, kind: str = "") -> tuple[str, str]:
    """(scorer, column) that a recipe's `column` means; the scorer is empty for a column of the index.

    kind: `.vectors` looks among the embeddings. Raises: ConfigError where nothing or more than one thing is meant.
    """
    of_index = () if kind else INDEX_COLUMNS
    if column in of_index:
        return "", column
    known = _score_columns(scores, tars[0], kind) if scores is not None else []
    found = [place for place in known if column in (place[1], ".".join(place))]
    if len(found) == 1:
        return found[0]
    names = [".".join(place) for place in known]
    if found:
        raise ConfigError(f"column '{column}' could be {' or '.join('.'.join(p) for p in found)}. Name the scorer.")
    what = "vectors" if kind else "column"
    where = f"{scores} has {', '.join(names) or 'none'}" if scores is not None else "the recipe names no `scores`"
    rest = "Scorers keep them with `keep_embeddings: true`" if kind else f"the index has {', '.join(INDEX_COLUMNS)}"
    raise ConfigError(f"no {what} '{column}'{nearest(column, [*names, *of_index])}: {where}; {rest}.")


def _score_columns(scores: Path, tar: Path, kind: str) -> list[tuple[str, str]]:
    tables = sorted(scores.glob(f"*/{tar.stem}{kind}.parquet"))
    return [
        (table.parent.name, name)
        for table in tables
        for name in pq.read_schema(table).names
        if name not in ("uid", "key")
    ]


def _load_shard(number: int, tar: Path, scores: Path | None, places: dict[str, tuple[str, str]]) -> Pool:
    index = read_index(tar, ["key", "uid", *INDEX_COLUMNS])
    lost = [damage.key for damage in read_quarantine(tar)]
    uids, keys = uids_as_numbers(index["uid"]), index["key"]
    undecodable = pa.array(_undecodable_keys(scores, tar), pa.string())
    damaged = pc.is_in(keys, value_set=undecodable).combine_chunks().to_numpy(zero_copy_only=False)
    return Pool(
        tars=[tar],
        scores=scores,
        shard=np.full(len(uids) + len(lost), number, dtype=np.int64),
        row=np.concatenate([np.arange(len(uids), dtype=np.int64), np.full(len(lost), -1, dtype=np.int64)]),
        keys=pa.chunked_array([*keys.chunks, pa.array(lost, pa.string())], pa.string()),
        uids=np.concatenate([uids, np.zeros(len(lost), dtype=UID)]),
        damaged=np.concatenate([damaged.astype(bool), np.ones(len(lost), dtype=bool)]),
        columns=_load_columns(tar, scores, index, uids, places, len(lost)),
    )


def _load_columns(
    tar: Path,
    scores: Path | None,
    index: pa.Table,
    uids: NDArray[np.void],
    places: dict[str, tuple[str, str]],
    num_lost: int,
) -> dict[str, Column]:
    """The columns of one shard; a table is read and joined once for all of its columns."""
    columns: dict[str, Column] = {}
    for scorer in dict.fromkeys(scorer for scorer, _ in places.values()):
        wanted = {name: column for name, (of, column) in places.items() if of == scorer}
        table, found = index, np.arange(len(uids))
        if scorer and scores is not None:
            path = scores / scorer / f"{tar.stem}.parquet"
            if not path.is_file():
                raise DataError(
                    f"{path} is missing: scorer '{scorer}' did not see {tar.name}. Run `rebus score` again."
                )
            table = pq.read_table(path, columns=list(dict.fromkeys(["uid", *wanted.values()])))
            found = places_of(uids, uids_as_numbers(table["uid"]))
        found = np.concatenate([found, np.full(num_lost, -1)])
        columns |= {name: _column(table[column], found) for name, column in wanted.items()}
    return columns


def _column(values: pa.ChunkedArray, found: NDArray[np.int64]) -> Column:
    """A table's column in the pool's order; found: row of the table, -1 where it has none."""
    taken = values.combine_chunks().take(pa.array(found, mask=found < 0))
    scored = taken.is_valid().to_numpy(zero_copy_only=False).astype(bool)
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        coded = taken.dictionary_encode()
        words = np.array([*coded.dictionary.to_pylist(), None], dtype=object)
        return Column(pc.fill_null(coded.indices, len(words) - 1).to_numpy(zero_copy_only=False), scored, words)
    if pa.types.is_uint64(values.type):
        return Column(pc.fill_null(taken, 0).to_numpy(zero_copy_only=False), scored)
    numbers = pc.fill_null(taken.cast(pa.float64()), float("nan")).to_numpy(zero_copy_only=False)
    return Column(numbers, ~np.isnan(numbers), single=pa.types.is_float32(values.type))


def _join(name: str, pieces: list[Column]) -> Column:
    kinds = {(piece.words is not None, piece.values.dtype) for piece in pieces}
    if len(kinds) > 1:
        raise DataError(f"column '{name}' is of another type in another shard. Run `rebus score` again.")
    scored = np.concatenate([piece.scored for piece in pieces])
    all_words = [piece.words for piece in pieces if piece.words is not None]
    if not all_words:
        return Column(np.concatenate([piece.values for piece in pieces]), scored, single=pieces[0].single)
    known = {word: number for number, word in enumerate(dict.fromkeys(w for words in all_words for w in words[:-1]))}
    renumbered = [
        np.array([*(known[word] for word in words[:-1]), len(known)], dtype=np.int32)[piece.values]
        for piece, words in zip(pieces, all_words, strict=True)
    ]
    return Column(np.concatenate(renumbered), scored, np.array([*known, None], dtype=object))


def _undecodable_keys(scores: Path | None, tar: Path) -> list[str]:
    """Keys that the scorers could not decode."""
    if scores is None:
        return []
    path = scores / QUARANTINE / f"{tar.stem}.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else []
    return [json.loads(line)["key"] for line in lines if line]
