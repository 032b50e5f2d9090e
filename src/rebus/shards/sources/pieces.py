"""A stretch of a source's records that becomes one shard."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Piece:
    """number: of the shard. file: where the records lie. first_row: number of the first record in the whole input.

    num_rows: records. offsets, lengths: int64 [num_rows], the bytes of each in `file`, for tables; None for formats
    whose records are found otherwise: those from record `start` of the file on, or all records of `files`.
    """

    number: int
    file: str
    first_row: int
    num_rows: int
    offsets: np.ndarray | None = None
    lengths: np.ndarray | None = None
    start: int = 0
    files: tuple[str, ...] = ()
