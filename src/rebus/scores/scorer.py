"""What a scorer is to the pass over the shards: what it takes from one sample, and what it makes of a batch."""

import importlib
import pkgutil
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from rebus.config import check_recipe
from rebus.errors import ConfigError, nearest
from rebus.scores import scorers
from rebus.scores.decode import Decoded

RESERVED = ("quarantine",)


@dataclass(frozen=True)
class Opened:
    """A scorer at work, its models loaded.

    look: takes from one decoded sample what the scorer needs of it (pixels, ids, numbers). Decoding threads call it,
    several at a time; the full picture is let go after it.
    measure: what `look` returned for a batch -> columns, [batch] or, for embeddings, [batch, D]: numpy arrays, or
    torch tensors, which are fetched from their device one batch later, so that it need not wait. One call at a time.
    pictures: False where it looks at no pixel; where no scorer of a pass does, nothing is decoded.
    takes_all_cores: its sums run on all cores here (a model on the CPU). Nothing is decoded meanwhile: torch's threads
    wait for each other, so two decoding beside two of them made a small network ten times slower, not twice.
    """

    look: Callable[[Decoded], Any]
    measure: Callable[[list[Any]], dict[str, Any]]
    pictures: bool = True
    takes_all_cores: bool = False


def per_sample(columns: dict[str, str], look: Callable[[Decoded], Sequence[Any]], *, pictures: bool = True) -> Opened:
    """A scorer that judges each sample alone. columns: name -> dtype (`float32`, `uint64`, `bool`, `str` ...), in the
    order of the values that `look` returns; None is no value."""

    def measure(rows: list[Any]) -> dict[str, Any]:
        values = list(zip(*rows, strict=True))
        return {name: _column(dtype, column) for (name, dtype), column in zip(columns.items(), values, strict=True)}

    return Opened(look, measure, pictures)


def _column(dtype: str, values: Sequence[Any]) -> np.ndarray:
    """None is no value: NaN among floats, masked among whole numbers and truths."""
    if dtype == "str":
        return np.array(values, dtype=object)
    if np.issubdtype(dtype, np.floating):
        return np.array(values, dtype=dtype)
    mask = [value is None for value in values]
    return np.ma.array([value or 0 for value in values], mask=mask, dtype=dtype)


@dataclass(frozen=True)
class Scorer:
    """A scorer of a recipe: the name of its tables, its module (see scorers/__init__.py) and its checked options."""

    name: str
    module: ModuleType
    options: Any

    @property
    def judges_the_pool(self) -> bool:
        return hasattr(self.module, "judge")

    def open(self) -> Opened:
        opened = self.module.open_scorer(self.options)
        assert isinstance(opened, Opened)
        return opened

    def made_by(self) -> dict[str, Any]:
        """All that shapes its numbers besides the shards: module, options, fingerprints of what it reads (not where
        that lies: weights may move)."""
        kind = self.module.__name__.rpartition(".")[2]
        if not hasattr(self.module, "inputs"):
            return {"scorer": kind, "options": self.options.model_dump(mode="json"), "inputs": {}}
        options = _without_paths(self.options.model_dump())
        return {"scorer": kind, "options": options, "inputs": self.module.inputs(self.options)}


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_paths(one) for name, one in value.items() if not isinstance(one, Path)}
    if isinstance(value, list | tuple):
        return [_without_paths(one) for one in value if not isinstance(one, Path)]
    return value


def open_named(name: str, entry: dict[str, Any]) -> Scorer:
    """The scorer that a recipe's entry means. name: of its tables. entry: its options; `scorer` among them names the
    module where that is not the name itself. Raises: ConfigError."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name) or name in RESERVED:
        raise ConfigError(
            f"scorers.{name}: a scorer names a folder: letters, digits, _ and - alone, not {RESERVED[0]}."
        )
    options = dict(entry)
    kind = options.pop("scorer", name)
    known = [module.name for module in pkgutil.iter_modules(scorers.__path__)]
    if kind not in known:
        hint = "" if kind in entry.values() else f" '{name}' names its tables; say `scorer: KIND` beside its options."
        raise ConfigError(f"no scorer '{kind}'{nearest(kind, known)}. There are: {', '.join(known)}.{hint}")
    module = importlib.import_module(f"{scorers.__name__}.{kind}")
    return Scorer(name, module, check_recipe(module.Options, options, f"scorers.{name}"))
