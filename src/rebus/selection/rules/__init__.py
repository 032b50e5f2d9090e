"""Rules, one a module, found by the module's name; view.py says what a module holds."""

import importlib
import pkgutil
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from rebus.config import Config, check_recipe
from rebus.errors import ConfigError, nearest


@dataclass(frozen=True)
class OpenRule:
    """A rule of a recipe with its module and checked options. kind: the module's name."""

    name: str
    kind: str
    module: ModuleType
    options: Config

    @property
    def made_by(self) -> dict[str, Any]:
        """What it is, for a manifest: options that nobody gave are left out where they are empty."""
        given = self.options.model_dump(mode="json", by_alias=True, exclude_none=True)
        return {"name": self.name, "rule": self.kind, **given}


def open_rule(name: str, kind: str, options: dict[str, Any]) -> OpenRule:
    """Finds the module and checks the options. Raises: ConfigError."""
    known = [module.name for module in pkgutil.iter_modules(__path__)]
    if kind not in known:
        raise ConfigError(f"rule '{name}': no kind '{kind}'{nearest(kind, known)}. There are: {', '.join(known)}.")
    module = importlib.import_module(f"{__name__}.{kind}")
    return OpenRule(name, kind, module, check_recipe(module.Rule, options, f"rule '{name}' ({kind})"))
