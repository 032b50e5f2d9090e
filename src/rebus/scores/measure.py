"""One pass over some shards: their samples decoded once, and every scorer's tables of them."""

import functools
import json
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rebus.records import Damage
from rebus.scores.config import ScoreRecipe
from rebus.scores.decode import Looked, Looking, look_at
from rebus.scores.scorer import Opened, Scorer, open_named
from rebus.scores.tables import (
    Names,
    concatenate,
    measured_path,
    table_path,
    write_measured,
    write_quarantine,
    write_table,
)

BATCHES_AHEAD = 2


@dataclass(frozen=True)
class Scored:
    """A shard whose tables are written. waiting: of its `seconds`, those in which nothing was decoded yet."""

    shard: str
    num_samples: int
    num_damaged: int
    seconds: float
    waiting: float


@dataclass(frozen=True)
class Pass:
    """What is done to each shard: these scorers of a recipe. It travels to other processes, which open the models.
    A worker that was lost may have finished some of its shards: those are passed over."""

    recipe: ScoreRecipe
    names: tuple[str, ...]

    def __call__(self, shards: Iterable[Path]) -> Iterator[Scored]:
        recipe = self.recipe
        entries = {name: recipe.scorers[name] for name in self.names}
        scorers, opened = _open(json.dumps(entries, default=str), recipe.num_threads)
        decodes = any(one.pictures for one in opened)
        left = (shard for shard in shards if not all(is_measured(recipe.out, scorer, shard) for scorer in scorers))
        looks, num_ahead = [one.look for one in opened], BATCHES_AHEAD * recipe.batch_size
        work = _Work(recipe, scorers, opened)
        stream = look_at(left, Looking(looks, decodes, recipe.num_decoders, num_ahead, work.may_decode))
        for shard, found in work.timed(stream):
            if found is None:
                yield work.finish(shard, decodes)
            else:
                work.take(found)


def is_measured(out: Path, scorer: Scorer, shard: Path) -> bool:
    """Whether a scorer has done what it does to a shard alone."""
    if table_path(out, scorer.name, shard).is_file():
        return True
    return scorer.judges_the_pool and measured_path(out, scorer.name, shard).is_file()


@functools.lru_cache(maxsize=1)
def _open(entries: str, num_threads: int | None) -> tuple[list[Scorer], list[Opened]]:
    """Models are loaded once a process, however many stretches of shards it is given."""
    if num_threads is not None:
        import torch

        torch.set_num_threads(num_threads)
    scorers = [open_named(name, entry) for name, entry in json.loads(entries).items()]
    return scorers, [scorer.open() for scorer in scorers]


@dataclass
class _Work:
    """The shard under work: what was measured of it so far."""

    recipe: ScoreRecipe
    scorers: list[Scorer]
    opened: list[Opened]
    may_decode: threading.Event = field(default_factory=threading.Event)
    waiting: float = 0.0
    began: float = field(default_factory=time.monotonic)
    names: Names = field(default_factory=list)
    damages: list[Damage] = field(default_factory=list)
    batch: list[Looked] = field(default_factory=list)
    parts: list[list[dict[str, Any]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.may_decode.set()

    def timed(self, stream: Iterator[Any]) -> Iterator[Any]:
        while True:
            before = time.monotonic()
            item = next(stream, None)
            self.waiting += time.monotonic() - before
            if item is None:
                return
            yield item

    def take(self, found: list[Looked | Damage]) -> None:
        for one in found:
            if isinstance(one, Damage):
                self.damages.append(one)
                continue
            self.batch.append(one)
            if len(self.batch) == self.recipe.batch_size:
                self._measure()

    def _measure(self) -> None:
        """Starts a batch, then fetches the one before it: a device that computes beside us always has work."""
        self.names += [(one.uid, one.key) for one in self.batch]
        taken = zip(*(one.taken for one in self.batch), strict=True)
        self.parts.append([self._measured(one, list(items)) for one, items in zip(self.opened, taken, strict=True)])
        self.batch = []
        if len(self.parts) > 1:
            self.parts[-2] = [_fetched(columns) for columns in self.parts[-2]]

    def _measured(self, opened: Opened, items: list[Any]) -> dict[str, Any]:
        if not opened.takes_all_cores:
            return opened.measure(items)
        self.may_decode.clear()
        try:
            return opened.measure(items)
        finally:
            self.may_decode.set()

    def finish(self, shard: Path, decodes: bool) -> Scored:
        if self.batch:
            self._measure()
        for number, scorer in enumerate(self.scorers):
            columns = concatenate([_fetched(part[number]) for part in self.parts])
            if scorer.judges_the_pool:
                write_measured(measured_path(self.recipe.out, scorer.name, shard), self.names, columns)
            else:
                write_table(self.recipe.out, scorer.name, shard, self.names, columns)
        if decodes:
            write_quarantine(self.recipe.out, shard, self.damages)
        now = time.monotonic()
        scored = Scored(shard.name, len(self.names), len(self.damages), now - self.began, self.waiting)
        self.names, self.damages, self.parts, self.waiting, self.began = [], [], [], 0.0, now
        return scored


def _fetched(columns: dict[str, Any]) -> dict[str, np.ndarray]:
    """torch tensors as numpy arrays; half precision of 16 brain bits has no other form than float32."""
    return {name: _array(values) for name, values in columns.items()}


def _array(values: Any) -> np.ndarray:
    if isinstance(values, np.ndarray):
        return values
    return (values.float() if str(values.dtype) == "torch.bfloat16" else values).cpu().numpy()
