"""What a foreign folder holds, in our terms."""

from dataclasses import dataclass
from typing import Any

from rebus.model.config import ModelConfig
from rebus.pictures.config import ImageConfig


@dataclass(frozen=True)
class Composition:
    """vision, text: configs of tower and language model as transformers 5.17 takes them (`model_type` inside), as JSON
    values. tokens: the TokensConfig that the weights were trained with, as JSON values; without `template` where the
    folder does not say which."""

    model: ModelConfig
    image: ImageConfig
    vision: dict[str, Any]
    text: dict[str, Any]
    tokens: dict[str, Any]
