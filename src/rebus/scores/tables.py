"""The files of a scores folder: tables, vectors and quarantine, one of each a shard, whole or not there at all."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rebus.fingerprint import write_atomically
from rebus.records import Damage

QUARANTINE = "quarantine"
SCORER = "scorer.json"
"""In the folder of each scorer: what made its tables."""

Names = list[tuple[str, str]]
"""uid and key of each row."""


def table_path(out: Path, scorer: str, shard: Path) -> Path:
    return out / scorer / f"{shard.stem}.parquet"


def vectors_path(out: Path, scorer: str, shard: Path) -> Path:
    return out / scorer / f"{shard.stem}.vectors.parquet"


def measured_path(out: Path, scorer: str, shard: Path) -> Path:
    """What a scorer that judges the whole pool keeps of a shard until it does."""
    return out / scorer / f"{shard.stem}.measured.safetensors"


def quarantine_path(out: Path, shard: Path) -> Path:
    return out / QUARANTINE / f"{shard.stem}.jsonl"


def table_files(folder: Path) -> list[Path]:
    """The tables of one scorer, a shard each, in the shards' order."""
    return sorted(path for path in folder.glob("*.parquet") if not path.name.endswith(".vectors.parquet"))


def numbers_of(table: pa.Table) -> list[str]:
    """The columns that can be ordered and drawn: not uid and key, texts, truths, nor hashes (uint64)."""
    return [
        field.name
        for field in table.schema
        if pa.types.is_floating(field.type) or pa.types.is_signed_integer(field.type)
    ]


def write_table(out: Path, scorer: str, shard: Path, names: Names, columns: dict[str, np.ndarray]) -> None:
    """Columns [rows] into the table, columns [rows, D] into the vectors beside it; the table is the last."""
    flat = {name: _flat(values) for name, values in columns.items() if values.ndim == 1}
    vectors = {name: _vectors(values) for name, values in columns.items() if values.ndim == 2}
    uids = pa.array([uid for uid, _ in names], pa.string())
    if vectors:
        _write(vectors_path(out, scorer, shard), pa.table({"uid": uids, **vectors}))
    keys = pa.array([key for _, key in names], pa.string())
    _write(table_path(out, scorer, shard), pa.table({"uid": uids, "key": keys, **flat}))


def write_measured(path: Path, names: Names, columns: dict[str, np.ndarray]) -> None:
    from safetensors.numpy import save

    contiguous = {name: np.ascontiguousarray(values) for name, values in columns.items()}
    write_atomically(path, save(contiguous, {"uids": json.dumps(names)}))


def read_measured(path: Path) -> tuple[Names, dict[str, np.ndarray]]:
    from safetensors import safe_open

    with safe_open(path, "np") as tensors:
        names = [(uid, key) for uid, key in json.loads(tensors.metadata()["uids"])]
        return names, {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118


def write_quarantine(out: Path, shard: Path, damages: Sequence[Damage]) -> None:
    lines = "".join(json.dumps(asdict(damage)) + "\n" for damage in damages)
    write_atomically(quarantine_path(out, shard), lines)


def read_quarantine(out: Path, shard: Path) -> list[Damage]:
    """What could not be decoded; nothing where no scorer looked at pictures."""
    path = quarantine_path(out, shard)
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [Damage(**json.loads(line)) for line in lines]


def concatenate(parts: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    """The columns of all parts, one after the other; what is masked stays so."""
    return {name: _joined([part[name] for part in parts]) for name in parts[0]} if parts else {}


def _joined(columns: list[np.ndarray]) -> np.ndarray:
    is_masked = any(isinstance(column, np.ma.MaskedArray) for column in columns)
    return np.ma.concatenate(columns) if is_masked else np.concatenate(columns)


def _write(path: Path, table: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_atomically(path, sink.getvalue().to_pybytes())


def _flat(values: np.ndarray) -> pa.Array:
    """Floats lie in the table as float32; everything else as it is."""
    if values.dtype == object:
        return pa.array(values.tolist(), pa.string())
    mask = np.ma.getmaskarray(values) if isinstance(values, np.ma.MaskedArray) else None
    return pa.array(np.asarray(values), pa.float32() if np.issubdtype(values.dtype, np.floating) else None, mask=mask)


def _vectors(values: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).reshape(-1)), values.shape[1])
