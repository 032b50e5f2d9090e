"""Vision transformers of the hub."""

from typing import TYPE_CHECKING, Any

from rebus.errors import ConfigError
from rebus.towers.config import TowerConfig, required_weights

if TYPE_CHECKING:
    import torch


def build_transformers(config: TowerConfig) -> "torch.nn.Module":
    """Patch tokens of a CLIP or SigLIP vision model; the layers above `select_layer` are never run."""
    import torch
    import transformers

    weights = required_weights(config)
    hub_config = transformers.AutoConfig.from_pretrained(weights, local_files_only=True)
    vision = getattr(hub_config, "vision_config", hub_config)
    models = {"clip_vision_model": "CLIPVisionModel", "siglip_vision_model": "SiglipVisionModel"}
    if vision.model_type not in models:
        raise ConfigError(f"{weights} holds a {vision.model_type}; known towers: {', '.join(models)}.")
    if vision.image_size != config.image_size:
        raise ConfigError(f"{weights} sees {vision.image_size} pixels a side, the recipe says {config.image_size}.")
    model = getattr(transformers, models[vision.model_type]).from_pretrained(
        weights, dtype=torch.float32, local_files_only=True
    )
    num_tokens = (vision.image_size // vision.patch_size) ** 2

    class TransformerTower(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.num_tokens, self.width = model, num_tokens, vision.hidden_size

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            states = self.model(pixel_values=pixels, output_hidden_states=True).hidden_states
            return states[config.select_layer][:, -num_tokens:]  # CLIP's class token stands first

    return TransformerTower()


def empty_tower(config: TowerConfig, vision: dict[str, Any]) -> "torch.nn.Module":
    """The tower that `build_transformers` makes, from the hub's vision config, its weights not loaded."""
    raise NotImplementedError
