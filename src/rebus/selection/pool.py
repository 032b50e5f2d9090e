"""The samples that a selection judges: the index of every shard, joined with its scores by uid."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from rebus.errors import ConfigError, DataError, nearest
from rebus.selection.rules import uids_as_numbers
from rebus.shards.read import read_index, read_quarantine

INDEX_COLUMNS = ("width", "height", "num_images", "text_chars")
QUARANTINE = "quarantine"


@dataclass(frozen=True)
class Pool:
    """N samples over all shards, those of the index's quarantine last in their shard with row -1 and no uid.

    shard: [N] number in `tars`; row: [N] in that shard's index; damaged: [N]; columns: name -> [N] float64, NaN where
    a sample has no score.
    """

    tars: list[Path]
    shard: NDArray[np.int64]
    row: NDArray[np.int64]
    keys: list[str]
    uids: list[str]
    damaged: NDArray[np.bool_]
    columns: dict[str, NDArray[np.float64]]

    @property
    def numbers(self) -> NDArray[np.void]:
        """uids as [N] u8,u8; zeros where there is none."""
        return uids_as_numbers([uid or "0" * 32 for uid in self.uids])


def load_pool(tars: list[Path], scores: Path | None, columns: Iterable[str]) -> Pool:
    """Reads what the rules need and no other column. columns: as the recipe names them."""
    places = {column: find_column(scores, tars, column) for column in dict.fromkeys(columns)}
    pieces = [_load_shard(number, tar, scores, places) for number, tar in enumerate(tars)]
    return Pool(
        tars=tars,
        shard=np.concatenate([piece.shard for piece in pieces]),
        row=np.concatenate([piece.row for piece in pieces]),
        keys=[key for piece in pieces for key in piece.keys],
        uids=[uid for piece in pieces for uid in piece.uids],
        damaged=np.concatenate([piece.damaged for piece in pieces]),
        columns={name: np.concatenate([piece.columns[name] for piece in pieces]) for name in places},
    )


def find_column(scores: Path | None, tars: list[Path], column: str) -> tuple[str, str]:
    """(scorer, column) that a recipe's `column` means; the scorer is empty for a column of the index.

    Raises: ConfigError where nothing or more than one thing is meant.
    """
    if column in INDEX_COLUMNS:
        return "", column
    known = _score_columns(scores, tars[0]) if scores is not None else []
    found = [place for place in known if column in (place[1], ".".join(place))]
    if len(found) == 1:
        return found[0]
    names = [".".join(place) for place in known]
    if found:
        raise ConfigError(f"column '{column}' could be {' or '.join('.'.join(p) for p in found)}. Name the scorer.")
    where = f"{scores} has {', '.join(names) or 'none'}" if scores is not None else "the recipe names no `scores`"
    raise ConfigError(
        f"no column '{column}'{nearest(column, [*names, *INDEX_COLUMNS])}: {where}; "
        f"the index has {', '.join(INDEX_COLUMNS)}."
    )


def _score_columns(scores: Path, tar: Path) -> list[tuple[str, str]]:
    tables = sorted(scores.glob(f"*/{tar.stem}.parquet"))
    return [
        (table.parent.name, name)
        for table in tables
        for name in pq.read_schema(table).names
        if name not in ("uid", "key")
    ]


def _load_shard(number: int, tar: Path, scores: Path | None, places: dict[str, tuple[str, str]]) -> Pool:
    index = read_index(tar)
    lost = [damage.key for damage in read_quarantine(tar)]
    keys, uids = index["key"].to_pylist(), index["uid"].to_pylist()
    undecodable = _undecodable_keys(scores, tar)
    columns = {name: _column(scores, tar, index, uids, place) for name, place in places.items()}
    blank = np.full(len(lost), np.nan)
    return Pool(
        tars=[tar],
        shard=np.full(len(keys) + len(lost), number, dtype=np.int64),
        row=np.concatenate([np.arange(len(keys), dtype=np.int64), np.full(len(lost), -1, dtype=np.int64)]),
        keys=keys + lost,
        uids=uids + [""] * len(lost),
        damaged=np.array([key in undecodable for key in keys] + [True] * len(lost), dtype=bool),
        columns={name: np.concatenate([values, blank]) for name, values in columns.items()},
    )


def _column(
    scores: Path | None, tar: Path, index: pa.Table, uids: list[str], place: tuple[str, str]
) -> NDArray[np.float64]:
    scorer, name = place
    if not scorer or scores is None:
        return index[name].to_numpy().astype(np.float64)
    path = scores / scorer / f"{tar.stem}.parquet"
    if not path.is_file():
        raise DataError(f"{path} is missing: scorer '{scorer}' did not see {tar.name}. Run `rebus score` again.")
    table = pq.read_table(path, columns=["uid", name])
    values = table[name].to_numpy().astype(np.float64)
    found = dict(zip(table["uid"].to_pylist(), values.tolist(), strict=True))
    return np.array([found.get(uid, np.nan) for uid in uids], dtype=np.float64)


def _undecodable_keys(scores: Path | None, tar: Path) -> set[str]:
    """Keys that the scorers could not decode."""
    if scores is None:
        return set()
    path = scores / QUARANTINE / f"{tar.stem}.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else []
    return {json.loads(line)["key"] for line in lines if line}
