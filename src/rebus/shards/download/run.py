"""`source: urls`: the shards of a table, and those of retries."""

import functools
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from rebus.engine import map_shards
from rebus.errors import DataError
from rebus.log import say
from rebus.shards.config import ShardsRecipe
from rebus.shards.download.retries import all_slices, last_round, plan_round, tar_of
from rebus.shards.download.shard import is_done
from rebus.shards.sources.urls import Slice, count_rows


def download(recipe: ShardsRecipe) -> list[Path]:
    """Downloads every shard that is not there yet; where all are, and the recipe says `retry_failed`, a round of what
    failed. Returns all shards."""
    tars = _tars(recipe)
    if not tars:
        raise DataError(f"{recipe.input} holds no row.")
    if recipe.download.retry_failed and all(map(is_done, tars)) and plan_round(recipe):
        say(f"{recipe.out}: asking again for what failed, from shard {last_round(recipe.out)} on")
        tars = _tars(recipe)
    shares = range(recipe.num_workers)
    function = functools.partial(download_share, recipe=recipe)
    if len(shares) == 1:
        function(0)
    else:
        map_shards(function, list(shares), description="download", num_workers=recipe.num_workers)
    return tars


def download_share(share: int, *, recipe: ShardsRecipe) -> None:
    """Every `num_workers`-th shard, with that part of the requests that hosts are to see at a time."""
    from rebus.shards.download.loop import download_slices

    num_workers = recipe.num_workers
    options = recipe.download.shared_by(num_workers)
    slices = islice(_targets(recipe), share, None, num_workers)
    total = count_rows(recipe.input) if num_workers == 1 else None
    download_slices(slices, options, recipe.rows_per_shard, recipe.out, total, quiet=num_workers > 1)


def _tars(recipe: ShardsRecipe) -> list[Path]:
    return [tar for _, tar in _targets(recipe)]


def _targets(recipe: ShardsRecipe) -> Iterator[tuple[Slice, Path]]:
    for one in all_slices(recipe):
        if one.piece.number >= 10**recipe.download.digits:
            raise DataError(
                f"shard {one.piece.number} has more than download.digits = {recipe.download.digits} digits: raise it, "
                "or samples_per_shard."
            )
        yield one, tar_of(recipe, one.piece.number)
