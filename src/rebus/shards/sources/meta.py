"""PaddleMIX's list of data sets: {name: {"annotation" or "file_name": table, "repeat_time": n, "root": folder}}."""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rebus.errors import DataError

MIXTURE = "mixture.json"
_NAME = re.compile(r"\w[\w.+-]*")
KEYS = ("annotation", "file_name")


@dataclass(frozen=True)
class DataSet:
    """repeat: how often a training epoch sees it; a fraction takes that share. root: None where the list has none."""

    name: str
    annotation: Path
    repeat: float
    root: Path | None


def read_meta(path: Path) -> list[DataSet]:
    """The data sets of a list, in its order. Relative paths start from the list's folder, or else from the working
    directory. Raises: DataError.
    """
    try:
        listed = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is no list of data sets: {error}.") from error
    if not isinstance(listed, dict) or not listed:
        raise DataError(f"{path} must hold an object {{name: {{annotation, repeat_time}}}}.")
    folders = [name.casefold() for name in listed]
    if len(set(folders)) < len(folders):
        raise DataError(f"{path}: two data sets whose names differ in case alone would share a folder.")
    return [_data_set(path, name, entry) for name, entry in listed.items()]


def _data_set(path: Path, name: str, entry: Any) -> DataSet:
    where = f"{path}, '{name}'"
    if not _NAME.fullmatch(name):
        raise DataError(f"{where}: the name becomes a folder; letters, digits and . _ + - are allowed in it.")
    if not isinstance(entry, dict):
        raise DataError(f"{where} is a {type(entry).__name__}, not an object.")
    annotation = next((entry[key] for key in KEYS if isinstance(entry.get(key), str)), None)
    if annotation is None:
        raise DataError(f"{where} names no table: `annotation` (or `file_name`) is missing.")
    repeat = entry.get("repeat_time", 1)
    if isinstance(repeat, bool) or not isinstance(repeat, int | float) or not 0 < repeat < math.inf:
        raise DataError(f"{where}: repeat_time = {repeat!r}; a number above 0 is wanted.")
    root = entry.get("root")
    return DataSet(name, find_path(path, annotation, where), repeat, find_path(path, root, where) if root else None)


def find_path(meta: Path, named: str, where: str) -> Path:
    """A path in the list: from the list's folder, or from the working directory. Raises: DataError."""
    tried = [meta.parent / named, Path(named)]
    found = next((path for path in tried if path.exists()), None)
    if found is None:
        raise DataError(f"{where}: there is neither {tried[0]} nor {tried[1].absolute()}.")
    return found


def mixture(data_sets: list[DataSet], out: Path) -> str:
    """What `rebus pack` reads as an entry of `shards`: the shards folder of each data set, and how often it counts."""
    entries = [{"folder": str(out / one.name), "repeat": one.repeat} for one in data_sets]
    return json.dumps({"shards": entries}, indent=1, ensure_ascii=False) + "\n"
