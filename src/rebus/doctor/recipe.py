"""What lies at a path, said as the recipe with which `rebus shards` would read it."""

import json
from pathlib import Path
from typing import Any

from rebus.config import Place, check_recipe, load_recipe
from rebus.doctor.examine import ROWS_PER_PIECE, SHARDS, TABLES
from rebus.errors import DataError
from rebus.shards.config import ShardsRecipe
from rebus.shards.pages import is_page
from rebus.shards.sources.meta import KEYS
from rebus.shards.sources.open_qwen2vl import is_pack
from rebus.shards.sources.tables import find_pieces, read_piece
from rebus.storage import is_remote

RECIPES = (".yaml", ".yml")
MAX_META_BYTES = 16 * 2**20  # a list of data sets names tables; it is not one
KNOWN = (
    f"Known are shards ({', '.join(SHARDS)}), parquet and packs of Open-Qwen2VL, or a folder of one of these; tables "
    f"({', '.join(TABLES)}) and JSON that lists them; URLs of tars; recipes of `rebus shards` ({', '.join(RECIPES)})."
)


def find_recipe(
    path: Place, *, root: Path | None = None, tokenizer: Path | None = None, num_workers: int | None = None
) -> ShardsRecipe:
    """The recipe at `path`, or the one that reads the data there; what is given besides goes before it.

    Raises: DataError where nothing known is there; ConfigError where the recipe cannot be used.
    """
    given = {"root": root, "tokenizer": tokenizer, "num_workers": num_workers}
    given = {name: value for name, value in given.items() if value is not None}
    tree: dict[str, Any] = {"out": "."}  # a recipe must have one; nothing is written
    if not is_remote(path) and Path(path).suffix.lower() in RECIPES:
        tree = load_recipe(ShardsRecipe, Path(path)).model_dump()
    else:
        tree |= {"source": _source_of(path), "input": path}
    return check_recipe(ShardsRecipe, tree | given, str(path))


def _source_of(path: Place) -> str:
    if is_remote(path):
        return "tars"
    path = Path(path)
    if path.is_dir():
        return _source_of_folder(path)
    if not path.is_file():
        raise DataError(f"nothing at {path}. {KNOWN}")
    if path.suffix in SHARDS:
        return "tars"
    if path.suffix.lower() == ".parquet":
        return "hub"
    if is_pack(path):
        return "open_qwen2vl"
    if path.suffix.lower() not in TABLES:
        raise DataError(f"{path} is nothing that can be examined. {KNOWN}")
    return "meta" if _is_meta(path) else _source_of_table(path)


def _source_of_folder(folder: Path) -> str:
    if any(any(folder.glob(f"*{suffix}")) for suffix in SHARDS):
        return "tars"
    if any(folder.rglob("*.parquet")):
        return "hub"
    if is_pack(folder):
        return "open_qwen2vl"
    raise DataError(f"{folder} holds nothing that can be examined. {KNOWN}")


def _is_meta(path: Path) -> bool:
    """A table in JSON is an array; an object whose entries name tables is a list of data sets."""
    if path.suffix.lower() != ".json" or path.stat().st_size > MAX_META_BYTES:
        return False
    try:
        listed = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError):
        return False
    entries = listed.values() if isinstance(listed, dict) else ()
    return any(isinstance(entry, dict) and not set(KEYS).isdisjoint(entry) for entry in entries)


def _source_of_table(table: Path) -> str:
    """By the fields of its first whole row."""
    pieces = find_pieces(table, ROWS_PER_PIECE)
    rows = (record for piece in pieces for _, record in read_piece(piece) if isinstance(record, dict))
    if (row := next(rows, None)) is None:
        raise DataError(f"{table} holds no whole row.")
    return _source_of_row(table, row)


def _source_of_row(table: Path, record: dict[str, Any]) -> str:
    if is_page(record):
        return "pages"
    if "conversations" in record or "messages" in record:
        return "conversations"
    if {"file", "caption"} <= set(record):
        return "pairs"
    wanted = "`texts` or `text_list` (pages), `conversations` or `messages`, or `file` and `caption` (pairs)"
    raise DataError(f"{table}: its rows have {', '.join(map(str, record))}; {wanted} are known.")
