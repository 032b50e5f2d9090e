"""Reads a checkpoint folder back into a model: Rebus' own, and the hub's as they are."""

from pathlib import Path
from typing import Any

import torch

from rebus.checkpoints.hub import cast
from rebus.checkpoints.skeleton import of_folder
from rebus.model.assemble import fill
from rebus.model.families import VisionLanguageModel
from rebus.pictures.config import ImageConfig


def load_model(
    folder: Path,
    *,
    image: ImageConfig | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    language: Path | None = None,
    tower_weights: Path | None = None,
    template: str | None = None,
) -> tuple[VisionLanguageModel, dict[str, Any]]:
    """Returns the model in eval mode and the TokensConfig it was trained with, as JSON values.

    folder: a checkpoint of Rebus, or a folder in one of the layouts that `checkpoints.hub` knows.
    image: another rule than the one it was trained with, such as more tokens a picture; None: that one.
    language, tower_weights: where the base weights lie now, if they have moved since; else where training had them.
    template: how turns are written, in place of what the folder says.
    Raises: DataError where something is missing, StrangerError where base weights are not those of the training.
    """
    start = of_folder(Path(folder), image=image, template=template, language=language, tower_weights=tower_weights)
    fill(start.model, start.tensors(), origin=start.origin, dtype=dtype, device=device)
    return cast(start.model, dtype), start.tokens
