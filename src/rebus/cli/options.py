"""What verbs have in common: a recipe with overrides, and where the work of a data stage goes."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

if TYPE_CHECKING:
    from rebus.config import Config
    from rebus.engine import Cluster

RecipePath = Annotated[Path, typer.Argument(help="YAML recipe.", metavar="RECIPE")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Dotted overrides, such as optimizer.lr=1e-3.", metavar="[KEY=VALUE]...")
]
Ray = Annotated[
    str | None,
    typer.Option("--ray", metavar="ADDRESS", help="Send the work to a Ray cluster: host:port, auto, or local."),
]
RayWorkers = Annotated[int | None, typer.Option(min=1, help="Workers on it; by default all that it has room for.")]
RayCpus = Annotated[float, typer.Option(min=0, help="CPUs that each of them takes.")]
RayGpus = Annotated[float, typer.Option(min=0, help="GPUs that each of them takes.")]
Recipe = TypeVar("Recipe", bound="Config")


def recipe_of(kind: type[Recipe], path: Path, overrides: list[str] | None) -> Recipe:
    """pydantic and YAML cost half of what `rebus --help` takes, so they are imported by the verbs that need them."""
    from rebus.config import load_recipe

    return load_recipe(kind, path, overrides)


def recipe_kind(path: Path) -> str | None:
    """What the recipe says of itself as `kind`; None where it says nothing or cannot be read, which is told later."""
    import yaml

    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    return tree.get("kind") if isinstance(tree, dict) else None


def recipe_from(kind: type[Recipe], tree: dict[str, Any], overrides: list[str] | None, origin: str) -> Recipe:
    """The same where the command line stands for the file."""
    from rebus.config import apply_override, check_recipe

    for override in overrides or []:
        apply_override(tree, override)
    return check_recipe(kind, tree, origin)


def cluster(address: str | None, num_workers: int | None, cpus: float, gpus: float) -> "Cluster | None":
    """What --ray and its fellows mean; None is this machine."""
    from rebus.engine import Cluster

    return Cluster(address, num_workers, cpus, gpus) if address is not None else None
