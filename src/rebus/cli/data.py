"""The verbs that make data: shards, score, select, reshard, uids, pack."""

from pathlib import Path
from typing import Annotated, Any

import typer

from rebus.cli.options import (
    Overrides,
    Ray,
    RayCpus,
    RayGpus,
    RayWorkers,
    RecipePath,
    cluster,
    recipe_from,
    recipe_of,
)

verbs = typer.Typer()


@verbs.command(epilog="Example: rebus shards recipes/quickstart/pool.yaml")
def shards(
    recipe: Annotated[Path | None, typer.Argument(help="YAML recipe.", metavar="[RECIPE]")] = None,
    overrides: Overrides = None,
    from_urls: Annotated[
        str | None, typer.Option(metavar="TABLE", help="Download what a table of URLs and captions names.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where --from-urls puts its shards.")] = None,
    ray: Ray = None,
    ray_workers: RayWorkers = None,
    ray_cpus: RayCpus = 1,
    ray_gpus: RayGpus = 0,
) -> None:
    """Write, index or download WebDataset shards: captions or conversations, every sample one seek away."""
    from rebus.engine import on_ray
    from rebus.shards.config import ShardsRecipe

    if from_urls is not None:
        if out is None:
            raise typer.BadParameter("say with --out where the shards go.", param_hint="--from-urls")
        tree = {"source": "urls", "input": from_urls, "out": str(out)}
        settings = [*([str(recipe)] if recipe else []), *(overrides or [])]
        checked = recipe_from(ShardsRecipe, tree, settings, "rebus shards --from-urls")
    elif recipe is None:
        raise typer.BadParameter("name a recipe, or a table with --from-urls.", param_hint="RECIPE")
    else:
        checked = recipe_of(ShardsRecipe, recipe, overrides)
    from rebus.shards.run import run

    with on_ray(cluster(ray, ray_workers, ray_cpus, ray_gpus)):
        run(checked)


@verbs.command(epilog="Example: rebus score runs/demo/pool --scorers image_stats,text_stats")
def score(
    recipe: Annotated[Path, typer.Argument(help="YAML recipe, or a folder of shards.", metavar="RECIPE")],
    overrides: Overrides = None,
    scorers: Annotated[
        str | None, typer.Option(metavar="A,B,C", help="Of a folder of shards: which scorers; options as overrides.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Of a folder of shards: by default `scores` beside it.")] = None,
    ray: Ray = None,
    ray_workers: RayWorkers = None,
    ray_cpus: RayCpus = 1,
    ray_gpus: RayGpus = 0,
) -> None:
    """Score image-text pairs: one decode a picture, one table a scorer, keyed by uid."""
    from rebus.engine import on_ray
    from rebus.scores.config import ScoreRecipe

    if recipe.is_dir():
        if scorers is None:
            raise typer.BadParameter("say which, such as image_stats,text_stats.", param_hint="--scorers")
        tree: dict[str, Any] = {"shards": str(recipe), "out": str(out or recipe.parent / "scores")}
        tree["scorers"] = {name: {} for name in scorers.split(",")}
        checked = recipe_from(ScoreRecipe, tree, overrides, "rebus score --scorers")
    else:
        checked = recipe_of(ScoreRecipe, recipe, overrides)
    from rebus.scores.run import run

    with on_ray(cluster(ray, ray_workers, ray_cpus, ray_gpus)):
        run(checked)


@verbs.command(epilog="Example: rebus select recipes/quickstart/select.yaml rules.0.keep_fraction=0.8")
def select(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Select samples by rules over scores, names or sets; a funnel says which rule dropped how many."""
    from rebus.selection.config import SelectionRecipe

    checked = recipe_of(SelectionRecipe, recipe, overrides)
    from rebus.selection.run import run

    run(checked)


@verbs.command(epilog='Example: rebus uids "dfn_15pct.npy | su_85.npy" --out dfn_or_su.npy')
def uids(
    expression: Annotated[
        str,
        typer.Argument(help="Files of uids, or selections, and | (union), & (both), - (without), ^ (one alone), ( )."),
    ],
    out: Annotated[Path, typer.Option(help="Where the set goes: sorted, each uid once, in DataComp's .npy.")],
) -> None:
    """Unite, intersect and subtract sets of uids: DFN's choice or MLM-Filter's in one line."""
    from rebus.selection.uid_sets import run

    run(expression, out)


@verbs.command(epilog="Example: rebus reshard reshard.yaml shard_size=5000")
def reshard(
    recipe: RecipePath,
    overrides: Overrides = None,
    ray: Ray = None,
    ray_workers: RayWorkers = None,
    ray_cpus: RayCpus = 1,
) -> None:
    """Copy what was selected into new tars that any tool reads; `rebus pack` needs none, a selection is a view."""
    from rebus.engine import on_ray
    from rebus.selection.resharding.config import ReshardRecipe

    checked = recipe_of(ReshardRecipe, recipe, overrides)
    from rebus.selection.resharding.run import run

    with on_ray(cluster(ray, ray_workers, ray_cpus, 0)):
        run(checked)


@verbs.command(epilog="Example: rebus pack recipes/quickstart/pack_align.yaml capacity=2048")
def pack(
    recipe: RecipePath,
    overrides: Overrides = None,
    ray: Ray = None,
    ray_workers: RayWorkers = None,
    ray_cpus: RayCpus = 1,
) -> None:
    """Plan packs of whole documents: an index of references, no pixel and no text copied."""
    from rebus.engine import on_ray
    from rebus.packs.config import PackRecipe

    checked = recipe_of(PackRecipe, recipe, overrides)
    from rebus.packs.run import run

    with on_ray(cluster(ray, ray_workers, ray_cpus, 0)):
        run(checked)
