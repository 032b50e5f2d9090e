"""The plan: plan.arrow, one row a document, sorted by pack. It names samples; it copies no pixel and no text."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rebus.errors import DataError
from rebus.fingerprint import Manifest, read_manifest, refuse_stranger
from rebus.tokens.config import TokensConfig
from rebus.tokens.tokenizer import tokens_fingerprint

PLAN_FILE = "plan.arrow"
SCHEMA = pa.schema(
    [
        ("pack", pa.int32()),
        ("shard", pa.int32()),
        ("row", pa.int32()),
        ("uid", pa.string()),
        ("num_tokens", pa.int32()),
        ("num_images", pa.int32()),
    ]
)


@dataclass(frozen=True)
class Reference:
    """One document of a pack: row `row` of the index of shard `shard`."""

    shard: Path
    row: int
    uid: str
    num_tokens: int
    num_images: int


@dataclass(frozen=True)
class Plan:
    """An opened plan. table: plan.arrow, memory-mapped. bounds: int64 [num_packs + 1], rows of each pack."""

    folder: Path
    manifest: Manifest
    tokens: TokensConfig
    shards: tuple[Path, ...]
    table: pa.Table
    bounds: np.ndarray

    @property
    def num_packs(self) -> int:
        return len(self.bounds) - 1

    @property
    def num_images(self) -> int:
        return int(np.sum(self.table["num_images"].to_numpy()))

    @property
    def capacity(self) -> int:
        return int(self.manifest.facts["capacity"])

    def documents(self, pack: int) -> list[Reference]:
        """The documents of a pack. Raises DataError where there is no such pack."""
        if not 0 <= pack < self.num_packs:
            raise DataError(f"{self.folder} has packs 0 to {self.num_packs - 1}, no pack {pack}.")
        start, end = int(self.bounds[pack]), int(self.bounds[pack + 1])
        return [
            Reference(self.shards[row["shard"]], row["row"], row["uid"], row["num_tokens"], row["num_images"])
            for row in self.table.slice(start, end - start).to_pylist()
        ]


def write_plan(folder: Path, table: pa.Table) -> None:
    """Writes plan.arrow whole or not at all. The table has SCHEMA and is sorted by pack."""
    temporary = folder / f".{PLAN_FILE}.{os.getpid()}.tmp"
    try:
        with pa.ipc.new_file(temporary, SCHEMA) as writer:
            writer.write_table(table)
        os.replace(temporary, folder / PLAN_FILE)
    finally:
        temporary.unlink(missing_ok=True)


def open_plan(folder: Path, tokens: TokensConfig | None = None) -> Plan:
    """Opens a finished plan.

    tokens: the rules that the reader is going to encode by; None takes the plan's own. Whichever it is, the tokenizer
    on disk must be the one that the plan was counted with, and the shards those that it refers to.

    Raises: StrangerError that lists what differs, DataError where there is no finished plan.
    """
    manifest = read_manifest(folder, "plan")
    planned = TokensConfig.model_validate(manifest.facts["tokens"])
    _refuse_other_tokens(folder, manifest, planned, tokens or planned)
    _refuse_other_shards(folder, manifest)
    with pa.memory_map(str(folder / PLAN_FILE)) as source:
        table = pa.ipc.open_file(source).read_all()
    packs = table["pack"].to_numpy()
    bounds = np.searchsorted(packs, np.arange(manifest.facts["num_packs"] + 1))
    shards = tuple(Path(shard["folder"]) / shard["name"] for shard in manifest.facts["shards"])
    return Plan(folder, manifest, tokens or planned, shards, table, bounds)


def _refuse_other_tokens(folder: Path, manifest: Manifest, planned: TokensConfig, wanted: TokensConfig) -> None:
    """The rules are listed one by one; the fingerprint covers the bytes of the tokenizer too."""
    expected = _flat({**wanted.model_dump(mode="json"), "fingerprint": tokens_fingerprint(wanted)})
    found = _flat({**planned.model_dump(mode="json"), "fingerprint": manifest.facts["tokens_fingerprint"]})
    if expected["tokens.fingerprint"] != found["tokens.fingerprint"]:
        remedy = "Pack again with these rules (`rebus pack`), or use the tokenizer that the plan was made with."
        refuse_stranger(folder, expected, found, remedy)


def _refuse_other_shards(folder: Path, manifest: Manifest) -> None:
    expected, found = {}, {}
    for name, path in manifest.facts["shard_folders"].items():
        expected[f"{name} ({path})"] = read_manifest(Path(path), "shards").fingerprint
        found[f"{name} ({path})"] = manifest.inputs[name]
    refuse_stranger(folder, expected, found, "The shards were made anew since. Pack again: `rebus pack`.")


def _flat(tree: dict[str, Any], prefix: str = "tokens") -> dict[str, Any]:
    rows: dict[str, Any] = {}
    for key, value in tree.items():
        rows |= _flat(value, f"{prefix}.{key}") if isinstance(value, dict) else {f"{prefix}.{key}": value}
    return rows
