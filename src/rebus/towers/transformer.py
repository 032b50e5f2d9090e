"""A vision transformer of transformers cut off above the chosen layer, as a tower. Imported where it is used: torch."""

from typing import Any

import torch
import transformers

from rebus.errors import ConfigError
from rebus.towers.config import TowerConfig

MODELS = {
    "clip_vision_model": "CLIPVisionModel",
    "siglip_vision_model": "SiglipVisionModel",
    "siglip2_vision_model": "Siglip2VisionModel",
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
}
"""Config's model_type -> class. SigLIP2's checkpoints of one fixed size call themselves siglip_vision_model."""

ABOVE = ("post_layernorm", "head", "layernorm")
"""What stands behind the last block: no hidden state has passed it."""


class TransformerTower(torch.nn.Module):
    """Pixels float32 [B, 3, S, S] -> features [B, num_tokens, width]: a hidden state of the full model, before its
    final norm. What lies above the chosen layer does not exist here, so every parameter is used.

    num_patches: tokens that form the square grid; num_tokens: the same, and the class token with `cls_patch`.
    model: for its parts and names (`embeddings`, `encoder`), never run whole.
    """

    model: Any

    def __init__(self, config: TowerConfig, settings: Any) -> None:
        """settings: a transformers vision config; it is cut down in place.

        Raises: ConfigError where no tower is known for it, or layer, features or image size do not fit.
        """
        super().__init__()
        self.model_type = _known(settings.model_type)
        self.side = _side(config, settings)
        self.num_special = _num_special(settings)
        if config.features == "cls_patch" and not self.num_special:
            raise ConfigError(f"features 'cls_patch' asks for a class token, which a {self.model_type} has not.")
        self.has_class = config.features == "cls_patch"
        self.num_patches, self.width = self.side**2, int(settings.hidden_size)
        self.num_tokens = self.num_patches + self.has_class
        settings.num_hidden_layers = num_blocks(config.select_layer, settings.num_hidden_layers)
        model_class = getattr(transformers, MODELS[self.model_type])
        self.model = _cut(model_class._from_config(settings, dtype=torch.float32, attn_implementation="sdpa"))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        states = self._embed(pixels)
        for block in _blocks(self.model):
            states = block(states) if self.model_type.startswith("dinov2") else block(states, None)
        patches = states[:, self.num_special :]
        return torch.cat([states[:, :1], patches], 1) if self.has_class else patches

    def _embed(self, pixels: torch.Tensor) -> torch.Tensor:
        if self.model_type == "siglip2_vision_model":
            return self._embed_patches(pixels)
        states = self.model.embeddings(pixels)
        return self.model.pre_layrnorm(states) if self.model_type == "clip_vision_model" else states

    def _embed_patches(self, pixels: torch.Tensor) -> torch.Tensor:
        """NaFlex (SigLIP 2, section 2.4.2) of a square: rows of patches (row, column, channel), none of them padding;
        one table of positions serves the whole batch."""
        embeddings, side = self.model.embeddings, self.side
        rows = (
            pixels.unflatten(3, (side, -1)).unflatten(2, (side, -1)).permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
        )
        table = embeddings.position_embedding.weight.unflatten(0, (embeddings.position_embedding_size, -1))
        shape = torch.tensor([[side, side]])  # on the host: it is read there
        positions = embeddings.resize_positional_embeddings(table, shape, max_length=side * side)
        return embeddings.patch_embedding(rows.to(table.dtype)) + positions


def num_blocks(select_layer: int, depth: int) -> int:
    """Blocks below hidden state `select_layer` of a model of `depth` blocks, which has depth + 1 of them."""
    if not -depth - 1 <= select_layer <= depth:
        raise ConfigError(f"select_layer is {select_layer}, but the tower has {depth} blocks: -{depth + 1} .. {depth}.")
    return select_layer if select_layer >= 0 else depth + 1 + select_layer


def _known(model_type: str) -> str:
    if model_type not in MODELS:
        raise ConfigError(f"a {model_type} is no known tower; known: {', '.join(MODELS)}.")
    return model_type


def _side(config: TowerConfig, settings: Any) -> int:
    """Patches a side. CLIP and SigLIP see one size; the others stretch their positions to any whole number."""
    is_fixed = settings.model_type in ("clip_vision_model", "siglip_vision_model")
    if is_fixed and settings.image_size != config.image_size:
        raise ConfigError(
            f"the tower sees {settings.image_size} pixels a side, the recipe says {config.image_size}. Set image_size."
        )
    if settings.model_type == "siglip2_vision_model" and config.image_size % settings.patch_size:
        raise ConfigError(f"image_size {config.image_size} is no multiple of the patch size {settings.patch_size}.")
    return config.image_size // settings.patch_size


def _num_special(settings: Any) -> int:
    """Tokens before the patches: class token and registers."""
    if settings.model_type.startswith("siglip"):
        return 0
    return 1 + getattr(settings, "num_register_tokens", 0)


def _blocks(model: Any) -> Any:
    return model.encoder.layer if hasattr(model.encoder, "layer") else model.encoder.layers


def _cut(model: Any) -> Any:
    """Takes off, in place, what feeds no hidden state."""
    for name in ABOVE:
        if hasattr(model, name):
            delattr(model, name)
    if hasattr(model.embeddings, "mask_token"):  # of DINOv2's own pre-training
        delattr(model.embeddings, "mask_token")
    return model
