"""The network in training: two sides, a scale and a bias, made of a dual encoder and folded back into it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rebus.errors import ConfigError
from rebus.filters.config import FilterRecipe
from rebus.filters.data import Pair, squares
from rebus.filters.side import Side, kept_features, together
from rebus.fingerprint import fingerprint
from rebus.pictures.prepare import prepare_image
from rebus.towers.cache import FeatureCache, encode_cached
from rebus.towers.config import TowerConfig, tower_fingerprint
from rebus.towers.dual import DualEncoder

if TYPE_CHECKING:
    import torch


@dataclass
class Network:
    """first_texts [N + 1]: which texts are whose, of all texts in a row."""

    image: Side
    text: Side
    logit_scale: "torch.nn.Parameter"
    logit_bias: "torch.nn.Parameter"
    first_texts: np.ndarray

    def logits(self, rows: np.ndarray, texts: np.ndarray, generator: "torch.Generator") -> "torch.Tensor":
        """[B, B] of these pairs, rows pictures. texts: places in the row of all texts."""
        image, text = self.image.embed(rows, generator), self.text.embed(texts, generator)
        return image @ text.T * self.logit_scale.exp() + self.logit_bias


def build(recipe: FilterRecipe, encoder: DualEncoder, pairs: Sequence[Pair], weights: dict[str, str]) -> Network:
    """Looks through the frozen towers (going on where it was killed) and makes ready what is trained."""
    import torch

    texts = [text for pair in pairs for text in pair.texts]
    folder = recipe.feature_cache or recipe.out / "features"
    seen = [pair.place["uid"] for pair in pairs]
    image = _side(recipe, encoder, "vision", list(pairs), folder / _name(recipe, "vision", weights, seen))
    text = _side(recipe, encoder, "text", texts, folder / _name(recipe, "text", weights, texts))
    bias = _bias(recipe, encoder)
    is_alive = any(side.weight is not None or side.module is not None for side in (image, text))
    if not is_alive:
        raise ConfigError("nothing would be trained: this model has no heads. Give towers.vision_lr or towers.text_lr.")
    scale = torch.nn.Parameter(encoder.model.logit_scale.detach().clone().reshape(()))
    first_texts = np.cumsum([0, *(len(pair.texts) for pair in pairs)])
    return Network(image, text, scale, torch.nn.Parameter(bias, requires_grad=recipe.loss == "sigmoid"), first_texts)


def _bias(recipe: FilterRecipe, encoder: DualEncoder) -> "torch.Tensor":
    import torch

    own = getattr(encoder.model, "logit_bias", None)
    start = recipe.logit_bias if own is None else float(own)
    return torch.tensor(start if recipe.loss == "sigmoid" else 0.0, device=encoder.device)


def _name(recipe: FilterRecipe, side: str, weights: dict[str, str], items: list[str]) -> str:
    """What shapes frozen features: the weights, the rule, and which items in which order."""
    tower = recipe.vision if side == "vision" else recipe.text
    rule = {
        "weights": weights,
        "tower": tower.model_dump(mode="json", exclude={"weights"}) if tower else None,
        "image": recipe.image.fingerprint if recipe.image and side == "vision" else None,
        "items": items,
    }
    return f"{side}-{fingerprint(rule)}"


def _side(recipe: FilterRecipe, encoder: DualEncoder, name: str, items: list[Any], folder: Path) -> Side:
    import torch

    encoder.model.vision_model.to(memory_format=torch.channels_last)  # Lite0 on a CPU: twice as fast
    encode, size = _encode_texts(encoder), together(encoder.device)
    if name == "vision":
        is_lite0 = recipe.vision is not None and recipe.vision.kind == "efficientnet_lite0"
        folds = is_lite0 and recipe.vision_lr is None
        encode, size = (_encode_lite0(recipe), len(items)) if folds else (_encode_pictures(encoder), size)
    projection = getattr(encoder.model, "visual_projection" if name == "vision" else "text_projection", None)
    weight = None if projection is None else torch.nn.Parameter(projection.weight.detach().clone())
    if (recipe.vision_lr if name == "vision" else recipe.text_lr) is not None:
        tower = getattr(encoder.model, f"{name}_model").requires_grad_(True)
        return Side(lambda rows: encode([items[row] for row in rows]), tower, weight)
    features = kept_features(encode, items, folder, f"the {name} tower looks once", size)
    features = features.to(encoder.device)
    side = Side(lambda rows: features[torch.from_numpy(rows).to(features.device)], None, weight, recipe.heads.dropout)
    if recipe.start is None:
        side.standardise(features)
    return side


def _encode_pictures(encoder: DualEncoder) -> Any:
    import torch

    def encode(pairs: list[Pair]) -> torch.Tensor:
        pixels = encoder.normalised(torch.from_numpy(squares(pairs, encoder.image_rule)))
        return encoder.model.vision_model(pixel_values=pixels).pooler_output.flatten(1)

    return encode


def _encode_lite0(recipe: FilterRecipe) -> Any:
    """Pooled features of the folded Lite0: three times as fast as the network that is saved, 1e-5 from it, and of the
    cache that other stages fill, so that pictures which scoring has seen are not looked at again."""
    import torch

    from rebus.towers.build import build_tower

    vision, _, image = recipe.towers_and_image()
    config = TowerConfig(kind="efficientnet_lite0", weights=vision.weights, image_size=image.size)
    tower = build_tower(config)
    folder = recipe.feature_cache
    cache = FeatureCache(folder, tower_fingerprint(config), image.fingerprint) if folder is not None else None

    def encode(pairs: list[Pair]) -> torch.Tensor:
        features = encode_cached(
            tower, cache, [pair.image_bytes() for pair in pairs], lambda data: prepare_image(data, image)
        )
        return torch.from_numpy(features.mean(axis=1))

    return encode


def _encode_texts(encoder: DualEncoder) -> Any:
    import torch

    def encode(texts: list[str]) -> torch.Tensor:
        rows, vectors = [], []
        for group in encoder.text_rule.groups(texts):
            mask = None if group.mask is None else torch.from_numpy(group.mask).to(encoder.device)
            ids = torch.from_numpy(group.ids).to(encoder.device)
            vectors.append(encoder.model.text_model(input_ids=ids, attention_mask=mask).pooler_output)
            rows.append(torch.from_numpy(group.rows))
        return torch.cat(vectors)[torch.argsort(torch.cat(rows)).to(encoder.device)]

    return encode


def fold(network: Network, encoder: DualEncoder) -> None:
    """Brings what was learned into the dual encoder; its towers are the ones that were trained."""
    import torch

    model = encoder.model
    with torch.no_grad():
        for side, name in ((network.image, "visual_projection"), (network.text, "text_projection")):
            if side.weight is not None:
                getattr(model, name).weight.copy_(side.folded())
        model.logit_scale.copy_(network.logit_scale.detach().reshape(model.logit_scale.shape))
        if getattr(model, "logit_bias", None) is not None:
            model.logit_bias.copy_(network.logit_bias.detach().reshape(model.logit_bias.shape))
    model.to(memory_format=torch.contiguous_format)  # as files keep it
    encoder.logit_scale = math.exp(network.logit_scale.item())
    model.eval().requires_grad_(False)
