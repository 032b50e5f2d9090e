"""Which rows of a tensor a rank holds, writes and reads: arithmetic along dim 0, with no message between ranks.

A tensor without dimensions counts as one row. FSDP2 cuts dim 0 as torch.chunk does, so the last ranks may hold none.
"""

import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch.distributed.tensor import DTensor, Replicate, Shard

from rebus.errors import ConfigError

MIN_PIECE_BYTES = 1 << 20
"""What several ranks hold is cut among them no finer than this: 64 replicas must not make 64 pieces of every norm."""


@dataclass(frozen=True)
class Rows:
    """Rows `first` to `last`, which is not one of them."""

    first: int
    last: int

    def __len__(self) -> int:
        return max(self.last - self.first, 0)

    def overlap(self, other: "Rows") -> "Rows":
        return Rows(max(self.first, other.first), min(self.last, other.last))

    def within(self, outer: "Rows") -> slice:
        """Where these rows lie in a tensor that holds the rows `outer`."""
        return slice(self.first - outer.first, self.last - outer.first)


@dataclass(frozen=True)
class Held:
    """The rows of a tensor that lie on this rank. `num_replicas` ranks hold the same; of those it is `replica`."""

    rows: Rows
    replica: int = 0
    num_replicas: int = 1


def held_rows(num_rows: int, axes: Iterable[tuple[int, int, bool]]) -> Held:
    """What a rank holds of `num_rows` rows.

    axes: of each axis of the device mesh, outermost first, its number of ranks, this rank's place on it, and whether
    the rows are cut along it (else its ranks hold the same).
    """
    rows, replica, num_replicas = Rows(0, num_rows), 0, 1
    for size, place, is_cut in axes:
        if is_cut:
            chunk = -(-len(rows) // size)
            first = min(rows.first + chunk * place, rows.last)
            rows = Rows(first, min(first + chunk, rows.last))
        else:
            replica, num_replicas = replica * size + place, num_replicas * size
    return Held(rows, replica, num_replicas)


def rows_to_write(name: str, held: Held, num_bytes: int) -> Rows:
    """Of the rows that several ranks hold, those that this one writes; every row is written by exactly one of them.

    Large tensors are cut among the replicas; a small one is written whole by a replica that follows from its name, so
    that the work is spread. num_bytes: of the rows held.
    """
    num_parts = max(1, min(held.num_replicas, num_bytes // MIN_PIECE_BYTES))
    part = (held.replica - zlib.crc32(name.encode())) % held.num_replicas
    if part >= num_parts:
        return Rows(held.rows.first, held.rows.first)
    first, num_rows = held.rows.first, len(held.rows)
    return Rows(first + num_rows * part // num_parts, first + num_rows * (part + 1) // num_parts)


def num_rows_of(shape: Iterable[int]) -> int:
    return next(iter(shape), 1)


def local_rows(name: str, tensor: torch.Tensor, rank: int = 0, world: int = 1) -> tuple[torch.Tensor, Held]:
    """This rank's rows as a view (rows, ...) of its memory, and which rows of the whole tensor they are.

    A plain tensor is held whole and equal by all `world` ranks. Raises: ConfigError for a DTensor that is cut
    otherwise than by rows.
    """
    num_rows = num_rows_of(tensor.shape)
    if not isinstance(tensor, DTensor):
        return _as_rows(tensor.detach()), held_rows(num_rows, [(world, rank, False)])
    with torch.no_grad():
        local = _as_rows(tensor.to_local().detach())
    held = held_rows(num_rows, _axes(name, tensor))
    if len(local) != len(held.rows):
        raise ConfigError(
            f"{name} {tuple(tensor.shape)} has {len(local)} rows on this rank, but {len(held.rows)} are expected of "
            f"{tensor.placements}. States know tensors that are cut into even chunks of rows, as FSDP2 does."
        )
    return local, held


def _axes(name: str, tensor: DTensor) -> list[tuple[int, int, bool]]:
    places = tensor.device_mesh.get_coordinate()
    strange = [p for p in tensor.placements if not isinstance(p, Replicate) and p != Shard(0)]
    if strange or places is None:
        raise ConfigError(
            f"{name} {tuple(tensor.shape)} is placed as {tensor.placements}; a state is written from rows: each axis "
            "of the device mesh must be Replicate() or Shard(0), and hold this rank."
        )
    cuts = [isinstance(placement, Shard) for placement in tensor.placements]
    return list(zip(tensor.device_mesh.shape, places, cuts, strict=True))


def _as_rows(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(1) if tensor.dim() == 0 else tensor
