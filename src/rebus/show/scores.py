"""Scores in the terminal: every column of every scorer, its shape, and the samples at both ends."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from rebus.errors import DataError, StrangerError
from rebus.fingerprint import Manifest, read_manifest
from rebus.log import output, printable, show_table
from rebus.scores.tables import numbers_of, table_files
from rebus.show.terminal import sparkline

NUM_BINS = 24
NUM_ENDS = 3


@dataclass(frozen=True)
class Scored:
    """A sample at the end of a column. shard: the stem of its file's name."""

    shard: str
    key: str
    uid: str
    value: float


@dataclass(frozen=True)
class Column:
    """A column of a scorer. values: the finite ones, float64 [M]. lowest, highest: from the end inwards."""

    scorer: str
    name: str
    num_rows: int
    values: np.ndarray
    lowest: tuple[Scored, ...]
    highest: tuple[Scored, ...]

    @property
    def title(self) -> str:
        return f"{self.scorer}.{self.name}"

    @property
    def num_missing(self) -> int:
        return self.num_rows - len(self.values)

    @property
    def varies(self) -> bool:
        return bool(len(self.values)) and bool(self.values.min() < self.values.max())

    @property
    def quantiles(self) -> tuple[float, ...]:
        """Minimum, 5%, median, 95%, maximum."""
        return tuple(np.quantile(self.values, [0, 0.05, 0.5, 0.95, 1]).tolist()) if len(self.values) else (np.nan,) * 5


@dataclass(frozen=True)
class Scores:
    """A finished scores folder. shards: the folder that they are of."""

    folder: Path
    manifest: Manifest
    shards: Path

    def columns(self) -> Iterator[Column]:
        """Every column, one at a time: a table of a scorer is read when its turn comes."""
        for scorer in self.manifest.facts["scorers"]:
            paths = table_files(self.folder / scorer)
            tables = [pq.read_table(path) for path in paths]
            places = np.repeat(np.arange(len(paths)), [table.num_rows for table in tables])
            table = pa.concat_tables(tables, promote_options="default")
            for name in numbers_of(table):
                yield _column(scorer, name, table, [path.stem for path in paths], places)


def open_scores(folder: Path, shards: Path | None = None) -> Scores:
    """shards: where the shards lie; None takes the recipe's. Raises: DataError, StrangerError from `shards_of`."""
    manifest = read_manifest(folder, "scores")
    recipe = folder / "recipe.yaml"
    if shards is None and recipe.is_file():
        shards = Path(yaml.safe_load(recipe.read_text())["shards"])
    return Scores(folder, manifest, shards or folder)


def refuse_other_shards(scores: Scores) -> None:
    """Raises: DataError where the shards are gone, StrangerError where they are others."""
    remedy = "Point --shards at the folder that these scores are of."
    if not scores.shards.is_dir():
        raise DataError(f"no shards at {scores.shards}. {remedy}")
    found, wanted = read_manifest(scores.shards, "shards").fingerprint, scores.manifest.inputs["shards"]
    if found != wanted:
        raise StrangerError(f"{scores.shards} is {found}, but {scores.folder} was made of {wanted}. {remedy}")


def _column(scorer: str, name: str, table: pa.Table, stems: list[str], places: np.ndarray) -> Column:
    values = table[name].to_numpy().astype(np.float64)
    good = np.flatnonzero(np.isfinite(values))
    order = good[np.argsort(values[good], kind="stable")]

    def scored(row: int) -> Scored:
        key, uid = table["key"][row].as_py(), table["uid"][row].as_py()
        return Scored(stems[int(places[row])], key, uid, float(values[row]))

    lowest, highest = order[:NUM_ENDS].tolist(), order[::-1][:NUM_ENDS].tolist()
    ends = tuple(tuple(map(scored, rows)) for rows in (lowest, highest))
    return Column(scorer, name, len(values), values[good], *ends)


def print_scores(scores: Scores) -> None:
    """A table a scorer, then each column's histogram and the samples at both of its ends."""
    output.print(
        f"{scores.folder}: {scores.manifest.facts['num_scored']:,} samples of {scores.shards}", highlight=False
    )
    columns = list(scores.columns())
    for scorer, group in groupby(columns, key=lambda one: one.scorer):
        rows = [[one.name, one.num_missing, *(f"{value:.4g}" for value in one.quantiles)] for one in group]
        show_table(scorer, ["column", "missing", "min", "5%", "median", "95%", "max"], rows)
    for one in columns:
        output.print(f"\n{one.title}  {_bars(one)}", style="bold", highlight=False)
        if one.varies:
            _print_ends("lowest ", one.lowest)
            _print_ends("highest", one.highest)


def bin_counts(values: np.ndarray, num_bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers in at most `num_bins` bins, and their edges. Whole numbers: as many in each bin, or gaps would show."""
    if np.array_equal(values, np.round(values)):
        width = int(np.ceil((np.ptp(values) + 1) / num_bins))
        return np.histogram(values, np.arange(values.min(), values.max() + width + 1, width) - 0.5)
    return np.histogram(values, num_bins)


def _bars(column: Column) -> str:
    return sparkline(bin_counts(column.values, NUM_BINS)[0].tolist()) if column.varies else "all the same"


def _print_ends(title: str, found: tuple[Scored, ...]) -> None:
    listed = ", ".join(f"{one.value:.4g} {printable(one.key)} ({one.shard})" for one in found)
    output.print(f"  {title}  {listed}", markup=False, highlight=False, soft_wrap=True)
