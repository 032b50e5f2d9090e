"""What a rule sees and what it answers. A rule is a module in `rules/`, found by its name, and holds

- `class Rule(Config)`: its options in a recipe;
- `columns(rule) -> list[str]`, `vectors(rule) -> list[str]`: the score columns and embeddings that it reads;
- `inputs(rule) -> dict[str, str]`: fingerprints of the files that it reads;
- `apply(rule, view) -> Kept`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rebus.selection.pool import Pool
from rebus.selection.vectors import iterate_vectors, vector_length


@dataclass(frozen=True)
class View:
    """The n samples that the rules before left. rows: int64 [n], their numbers in the pool, ascending."""

    pool: Pool
    rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def uids(self) -> NDArray[np.void]:
        """[n] u8,u8."""
        return self.pool.uids[self.rows]

    @property
    def sources(self) -> NDArray[np.int64]:
        """[n] number of each sample's shard in `pool.tars`."""
        return self.pool.shard[self.rows]

    @property
    def keys(self) -> pa.ChunkedArray:
        """[n] Arrow strings."""
        return self.pool.keys.take(pa.array(self.rows))

    def column(self, name: str) -> NDArray:
        """[n] float64 (NaN: no score), uint64 (0 where there is no score: ask `scored`), or object (None: no score)."""
        column = self.pool.columns[name]
        values = column.values[self.rows]
        return values if column.words is None else column.words[values]

    def scored(self, name: str) -> NDArray[np.bool_]:
        """[n] whether a sample has a value in the column."""
        return self.pool.columns[name].scored[self.rows]

    def bound(self, name: str, value: float) -> float:
        """A bound as the column would store it: a score of 0.7 in float32 is 0.699999988, and meets a bound of 0.7."""
        return float(np.float32(value)) if self.pool.columns[name].single else value

    def iterate_vectors(self, name: str) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Yields (places in this view [m], float32 [m, D]) shard by shard; a sample without a vector is left out."""
        return iterate_vectors(self.pool, name, self.rows)

    def vectors(self, name: str) -> NDArray[np.float32]:
        """float32 [n, D], all at once (4 n D bytes); a sample without a vector has a row of NaN."""
        found = np.full((len(self.rows), vector_length(self.pool, name)), np.nan, dtype=np.float32)
        for places, block in self.iterate_vectors(name):
            found[places] = block
        return found


@dataclass(frozen=True)
class Kept:
    """A rule's answer about the n samples of a view.

    kept: [n]. unscored: [n] samples without a value that the rule needs; the funnel counts them as `no score`.
    pairs: for duplicates, a table of dropped, kept (int64 numbers in the pool) and distance (float32); kept is -1 where
    it is no sample of the pool, and a column `place` (string) then says what it is.
    values: [n] what was compared, and boundary, the value at which it turns, or one a sample [n]: the report shows
    samples near it. counts: what else a person should know, in words -> number.
    """

    kept: NDArray[np.bool_]
    unscored: NDArray[np.bool_] | None = None
    pairs: pa.Table | None = None
    values: NDArray | None = None
    boundary: float | NDArray[np.float64] | None = None
    counts: dict[str, int] = field(default_factory=dict)
