"""`rebus export`: a checkpoint leaves as a hub folder, or its adapters alone."""

from pathlib import Path

import torch

from rebus.checkpoints.export import HUB_LAYOUTS, export
from rebus.checkpoints.export_adapters import export_adapters
from rebus.checkpoints.load import load_model
from rebus.errors import ConfigError
from rebus.log import say


def run(
    source: Path,
    out: Path,
    *,
    layout: str | None,
    dtype: str | None,
    shard_bytes: int,
    template: str | None,
    merge: bool = True,
) -> Path:
    """`rebus export`: loads a checkpoint and writes it as a hub folder; with `merge` false, its adapters alone."""
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype is not None and dtype not in known:
        raise ConfigError(f"dtype '{dtype}' is none of {', '.join(known)}.")
    model, tokens = load_model(source, template=template)
    if not merge:
        form = export_adapters(model, tokens, out, layout, tower=(source / "tower").is_dir())
        say(f"{out}: adapters on {model.config.language}, connector beside them; form '{form}'")
        return out
    name = export(model, tokens, out, layout, dtype=known[dtype] if dtype else None, shard_bytes=shard_bytes)
    say(f"{out}: {name}" + "; plain transformers reads it" * (name in HUB_LAYOUTS))
    return out
