"""Records of a source -> shards, piece by piece. A piece says where its records lie, so that any number of processes,
and a run after a kill, find the same records in the same shard.
"""

import functools
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rebus.engine import map_shards
from rebus.errors import DataError
from rebus.records import Damage
from rebus.shards.assemble import assemble
from rebus.shards.config import ShardsRecipe
from rebus.shards.damage import DamagedSampleError
from rebus.shards.index import is_indexed, write_index
from rebus.shards.linking import link_piece
from rebus.shards.sources.pieces import Piece
from rebus.shards.write import write_shard


def convert(recipe: ShardsRecipe) -> list[Path]:
    """Writes, or links, and indexes every shard that is not there yet. Returns the shards."""
    if recipe.source == "urls":
        from rebus.shards.download.run import download

        return download(recipe)
    table, root = recipe.table, recipe.image_root
    if recipe.link:  # a link is read from anywhere: it names whole paths
        table, root = table.resolve(), root.resolve()
        function = functools.partial(link_piece, check_images=recipe.check_images)
    else:
        function = functools.partial(write_piece, tokenizer=recipe.tokenizer)
    function = functools.partial(function, source=recipe.source, root=root, out=recipe.out)
    pieces = _source(recipe.source).find_pieces(table, recipe.rows_per_shard)
    shards = map_shards(function, pieces, description="shards", num_workers=recipe.num_workers)
    if not shards:
        raise DataError(f"{recipe.input} holds no record.")
    return shards


def write_piece(piece: Piece, *, source: str, root: Path, out: Path, tokenizer: Path | None = None) -> Path:
    """Writes the tar of one piece and its index. A record that cannot be used never enters the tar."""
    tar = out / f"{piece.number:05d}.tar"
    if not is_indexed(tar):
        module = _source(source)
        records = module.read_piece(piece) if tokenizer is None else module.read_piece(piece, tokenizer)
        damages: list[Damage] = []
        write_shard(tar, _build(module, enumerate(records, piece.first_row + 1), root, tar.name, damages))
        write_index(tar, damages)
    return tar


def _build(
    module: Any, records: Iterator[tuple[int, tuple[str, Any]]], root: Path, shard: str, damages: list[Damage]
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yields (key, members) of the good records; appends the others to `damages`, offset -1: they are in no tar."""
    for number, (key, record) in records:
        try:
            if isinstance(record, DamagedSampleError):
                raise record
            members = module.build(record, root)
            assemble(key, shard, members)
        except DamagedSampleError as error:
            damages.append(Damage(shard, key, -1, error.reason, f"record {number}: {error.detail}".rstrip(": ")))
        else:
            yield key, members


def _source(name: str) -> Any:
    return importlib.import_module(f"rebus.shards.sources.{name}")
