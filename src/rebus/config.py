"""Recipes: typed, strict, three layers deep. Defaults <- YAML file <- dotted overrides (`optimizer.lr=1e-3`).

An unknown key is an error that names the nearest known one; the resolved recipe is written into what it makes.
"""

from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from rebus.errors import ConfigError, nearest
from rebus.fingerprint import write_atomically


class Config(BaseModel):
    """Base of every recipe section: frozen, and no key that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


Recipe = TypeVar("Recipe", bound=Config)

Url = Annotated[str, StringConstraints(pattern=r"^[a-z0-9+]+://")]
Place = Url | Path
"""A path on this machine, or a URL of storage that fsspec reads (s3://bucket/folder)."""


def load_recipe(model: type[Recipe], path: Path, overrides: list[str] | None = None) -> Recipe:
    """Reads a YAML recipe, lays `a.b=value` overrides over it and checks every key and value.

    Raises: ConfigError with the file, the key and what would be accepted.
    """
    if not path.is_file():
        raise ConfigError(f"no recipe at {path}. Recipes that come with Rebus are under recipes/.")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold a mapping of keys to values, not a {type(tree).__name__}.")
    for override in overrides or []:
        apply_override(tree, override)
    return check_recipe(model, tree, str(path))


def check_recipe(model: type[Recipe], tree: dict[str, Any], origin: str) -> Recipe:
    """Builds the typed recipe from plain values; `origin` names them in errors."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        rows = [_explain(model, tree, row) for row in error.errors()]
        raise ConfigError("\n".join([f"{origin} cannot be used:", *rows])) from error


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Sets `a.b.c=value`, or `rules.0.min=5` inside a list. Values are YAML: `1e-3`, `true`, `[1, 2]` work."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"override '{override}' is not of the form key=value, such as optimizer.lr=1e-3.")
    *parents, leaf = key.split(".")
    node: Any = tree
    for parent in parents:
        node = node.setdefault(parent, {}) if isinstance(node, dict) else node[_place(node, parent, override)]
        if not isinstance(node, dict | list):
            raise ConfigError(f"override '{override}': '{parent}' is a value in the recipe, not a section.")
    node[leaf if isinstance(node, dict) else _place(node, leaf, override)] = _scalar(text)


def _place(items: list[Any], step: str, override: str) -> int:
    """The place in a list that a step of a dotted key names, counted from 0."""
    if not step.isdecimal() or int(step) >= len(items):
        raise ConfigError(f"override '{override}': '{step}' is no place in a list of {len(items)}; they count from 0.")
    return int(step)


def _scalar(text: str) -> Any:
    """YAML 1.1 reads 1e-3 as a string; people mean a number."""
    value = yaml.safe_load(text)
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _explain(model: type[BaseModel], tree: dict[str, Any], row: Any) -> str:
    location = _as_written(tree, row["loc"])
    dotted = ".".join(location)
    if row["type"] == "extra_forbidden":
        return f"  unknown key '{dotted}'{nearest(location[-1], _known_keys(model, row['loc'][:-1]))}"
    if row["type"] == "missing":
        return f"  missing key '{dotted}'"
    if row["type"] == "union_tag_invalid":
        found, known = row["ctx"]["tag"], [tag.strip("' ") for tag in row["ctx"]["expected_tags"].split(",")]
        return f"  '{dotted}' is of no kind '{found}'{nearest(found, known)}; there are {', '.join(known)}"
    message = row["msg"].removeprefix("Value error, ")
    return f"  '{dotted}' = {row.get('input')!r}: {message}" if dotted else f"  {message}"


def _as_written(tree: Any, steps: tuple[Any, ...]) -> list[str]:
    """The steps that the recipe has too: pydantic also names which member of a union it tried."""
    written = []
    for number, step in enumerate(steps):
        is_there = step in tree if isinstance(tree, dict) else isinstance(tree, list) and isinstance(step, int)
        if is_there:
            tree = tree[step]
        elif not (isinstance(tree, dict) and number == len(steps) - 1):  # what is missing is named last
            continue
        written.append(str(step))
    return written


def _known_keys(model: Any, location: tuple[Any, ...]) -> list[str]:
    """Field names of the section at `location`; all names in the recipe where unions hide which one was meant."""
    for step in location:
        inner = getattr(model, "model_fields", {}).get(step)
        model = getattr(inner, "annotation", None) if inner is not None else model
        arguments = [a for a in getattr(model, "__args__", ()) if hasattr(a, "model_fields")]
        model = arguments[0] if arguments else model
    return list(getattr(model, "model_fields", {}))


def dump_recipe(recipe: Config, path: Path) -> None:
    """Writes the resolved recipe as YAML: the file alone repeats the run."""
    write_atomically(path, yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False))
