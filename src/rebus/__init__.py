"""Rebus: build your own vision-language model in the open."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rebus.version import __version__

if TYPE_CHECKING:
    from rebus.server.engine import Engine

__all__ = ["__version__", "load"]


def load(path_or_id: str | Path, **options: Any) -> "Engine":
    """A model that answers: `rebus.load("runs/sft").generate("What is this?", images=["dog.png"]).text`.

    options: device, dtype, min_pixels, max_pixels, template; see rebus.server.load.
    """
    from rebus.server.load import load as load_engine

    return load_engine(path_or_id, **options)
