"""The last thing a run may write: its checkpoint again as a hub folder that other servers read."""

from pathlib import Path
from typing import Any

from rebus.checkpoints.export import choose, export
from rebus.checkpoints.load import load_model
from rebus.errors import ConfigError
from rebus.fingerprint import discard, read_manifest
from rebus.log import say
from rebus.model.families import VisionLanguageModel


def check_exportable(model: VisionLanguageModel) -> str:
    """The layout that a model will leave in; its parameters may be on the meta device, so ask before training.

    Raises: ConfigError with the reason of every layout that cannot hold it.
    """
    try:
        return choose(model, None)
    except ConfigError as error:
        raise ConfigError(f"{error}\nWrite no hub folder (hub_folder: false), or change what they name.") from error


def write_hub_folder(checkpoint: Path, out: Path, **settings: Any) -> Path:
    """Writes a checkpoint as a hub folder with its adapters merged, in place of what `out` held. Returns `out`.

    One process's work: the whole model is in the host's memory for it. settings: of `export`, such as `dtype`.
    """
    read_manifest(checkpoint, "checkpoint")
    model, tokens = load_model(checkpoint)
    check_exportable(model)
    discard(out)
    layout = export(model, tokens, out, **settings)
    say(f"{out}: {layout}; plain transformers reads it")
    return out
