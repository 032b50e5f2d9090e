"""The plan: plan.arrow, one row a document, sorted by pack. It names samples; it copies no pixel and no text."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rebus.errors import DataError, StrangerError
from rebus.fingerprint import Manifest, read_manifest, refuse_stranger
from rebus.packs.config import CostConfig
from rebus.records import Sample
from rebus.tokens.config import TokensConfig
from rebus.tokens.tokenizer import tokens_fingerprint

PLAN_FILE = "plan.arrow"
VERSION = 2
"""Part of what makes a plan: count it up when the same recipe gives another one."""
TO_THE_END = -1
SCHEMA = pa.schema(
    [
        ("pack", pa.int32()),
        ("shard", pa.int32()),
        ("row", pa.int32()),
        ("uid", pa.binary(16)),
        ("num_tokens", pa.int32()),
        ("num_images", pa.int32()),
        ("num_patches", pa.int32()),
        ("first_part", pa.int32()),
        ("end_part", pa.int32()),
    ]
)
"""48 bytes a document. first_part, end_part: its parts of the sample; TO_THE_END where nothing is cut off."""


@dataclass(frozen=True)
class Reference:
    """One document of a pack: parts[first_part:end_part] of row `row` of the index of shard `shard`."""

    shard: Path
    row: int
    uid: str
    num_tokens: int
    num_images: int
    num_patches: int = 0
    first_part: int = 0
    end_part: int = TO_THE_END

    def cut(self, sample: Sample) -> Sample:
        """The document of this sample: all of it, or the parts that the plan cut out."""
        if self.first_part == 0 and self.end_part == TO_THE_END:
            return sample
        end = len(sample.parts) if self.end_part == TO_THE_END else self.end_part
        return replace(sample, parts=sample.parts[self.first_part : end])


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

    @property
    def cross_document(self) -> bool:
        """True where attention and positions run through a pack as if it were one document."""
        return bool(self.manifest.facts["cross_document"])

    @property
    def blocks(self) -> np.ndarray:
        """int64 [num_blocks + 1]: the packs of each block of shards; one block where the recipe wants none."""
        return np.array(self.manifest.facts["blocks"], dtype=np.int64)

    @property
    def costs(self) -> np.ndarray:
        """float64 [num_packs]: the work of each pack, in that of a token (CostConfig). Worked out anew each time."""
        lengths, patches = self.table["num_tokens"].to_numpy(), self.table["num_patches"].to_numpy()
        cost = CostConfig.model_validate(self.manifest.facts["cost"])
        return pack_costs(lengths, patches, self.bounds, cost, cross_document=self.cross_document)

    def documents(self, pack: int) -> list[Reference]:
        """The documents of a pack. Raises DataError where there is no such pack."""
        if not 0 <= pack < self.num_packs:
            raise DataError(f"{self.folder} has packs 0 to {self.num_packs - 1}, no pack {pack}.")
        start, end = int(self.bounds[pack]), int(self.bounds[pack + 1])
        _, shards, rows, uids, *numbers = self.table.slice(start, end - start).to_pydict().values()
        return [
            Reference(self.shards[shard], row, uid.hex(), *rest)
            for shard, row, uid, *rest in zip(shards, rows, uids, *numbers, strict=True)
        ]


def pack_costs(
    lengths: np.ndarray, patches: np.ndarray, bounds: np.ndarray, cost: CostConfig, *, cross_document: bool = False
) -> np.ndarray:
    """lengths, patches: int [documents], in the packs' order. bounds: int64 [packs + 1]. Returns: float64 [packs].

    A document attends to itself alone, so its length is squared; across documents it is the pack's length.
    """
    num_tokens = _sums(lengths, bounds)
    squares = num_tokens**2 if cross_document else _sums(lengths.astype(np.float64) ** 2, bounds)
    return cost.per_token * num_tokens + cost.per_token_squared * squares + cost.per_patch * _sums(patches, bounds)


def _sums(values: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Sums of a pack's values, each pack with at least one: float64 [packs]. Exact for integers below 2**53."""
    return np.add.reduceat(values, bounds[:-1], dtype=np.float64) if len(bounds) > 1 else np.empty(0)


def write_plan(folder: Path, batches: Iterable[pa.RecordBatch]) -> None:
    """Writes plan.arrow whole or not at all. The batches have SCHEMA and are sorted by pack."""
    temporary = folder / f".{PLAN_FILE}.{os.getpid()}.tmp"
    try:
        with pa.ipc.new_file(temporary, SCHEMA) as writer:
            for batch in batches:
                writer.write_batch(batch)
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
    if manifest.made_by.get("version") != VERSION:
        raise StrangerError(f"{folder} was planned by another version of Rebus. Pack again: `rebus pack`.")
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
