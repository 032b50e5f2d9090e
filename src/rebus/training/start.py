"""Where a run starts: its plan opened, its model built or loaded, and what a frozen tower makes of the pictures
computed once, before the first step."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from rebus.batches.feed import Feed, Preparation, open_feed, plan_images
from rebus.checkpoints.load import load_model
from rebus.errors import ConfigError
from rebus.log import track
from rebus.model.connector import pool
from rebus.model.families import VisionLanguageModel, add_lora, build
from rebus.pictures.config import FixedConfig, ImageConfig
from rebus.pictures.prepare import Prepared, prepare_image
from rebus.records import Image
from rebus.towers.cache import FeatureCache, encode_cached
from rebus.towers.config import tower_fingerprint
from rebus.training.config import TrainRecipe

CHUNK = 32


def open_start(recipe: TrainRecipe) -> tuple[Feed, VisionLanguageModel]:
    """The plan and the model of a recipe, as they are before step 0.

    The plan's image rule is the model's: a checkpoint may go on with another number of tokens or pixels.
    Raises: ConfigError where the model cannot follow it.
    """
    feed = open_feed(recipe.plan, shard_cache=recipe.shard_cache, shard_cache_gb=recipe.shard_cache_gb)
    image = feed.plan.tokens.image
    model = _open_model(recipe, image, feed.plan.tokens.template)
    if recipe.feature_cache is None:
        return feed, model
    if not isinstance(image, FixedConfig):
        raise ConfigError(f"feature_cache keeps features of square pictures; the plan's are of kind '{image.kind}'.")
    cache = open_cache(recipe.feature_cache, model, image)
    statistics = recipe.standardise_features and recipe.model is not None
    fill_cache(feed, model, image, cache, standardise=statistics)
    shape = (model.tower.num_tokens, model.tower.width)
    return replace(feed, preparation=Preparation(_reader(cache), shape, is_raw=False)), model


def _open_model(recipe: TrainRecipe, image: ImageConfig, template: str) -> VisionLanguageModel:
    if recipe.model is not None:
        config = recipe.model.model_copy(update={"lora": recipe.lora})
        return build(config, image, seed=recipe.seed)
    assert recipe.init is not None
    model, _ = load_model(recipe.init, image=image, template=template)
    if recipe.lora is not None and model.config.lora is None:
        model.config = model.config.model_copy(update={"lora": recipe.lora})
        torch.manual_seed(recipe.seed)
        add_lora(model.language, model.config)
    return model


def open_cache(folder: Path, model: VisionLanguageModel, image: FixedConfig) -> FeatureCache:
    """The cache of what this model's tower makes of pictures prepared by this rule."""
    return FeatureCache(folder, tower_fingerprint(model.config.tower), image.fingerprint)


def fill_cache(
    feed: Feed, model: VisionLanguageModel, rule: FixedConfig, cache: FeatureCache, *, standardise: bool
) -> None:
    """Runs the frozen tower once over every picture of the plan; what the cache has already is only read.

    standardise: gives the connector the mean and standard deviation of every channel over the plan's pictures.
    """
    width = model.connector.feature_width
    count, total, squares = 0, np.zeros(width), np.zeros(width)
    images = iter(track(plan_images(feed), "encoding pictures", total=feed.plan.num_images))
    while chunk := list(islice(images, CHUNK)):
        features = _encode(model, rule, cache, [image.data for image in chunk if image.data is not None])
        if standardise and len(features):
            pooled = pool(torch.from_numpy(features), rule.tokens_per_side).double().numpy().reshape(-1, width)
            count += len(pooled)
            total += pooled.sum(axis=0)
            squares += np.square(pooled).sum(axis=0)
    if standardise and count:
        mean = total / count
        std = np.sqrt(np.maximum(squares / count - mean**2, 0))
        model.connector.set_statistics(torch.from_numpy(mean).float(), torch.from_numpy(std).float())


def _encode(model: VisionLanguageModel, rule: FixedConfig, cache: FeatureCache, pictures: list[bytes]) -> np.ndarray:
    """Features of a chunk; a picture that cannot be decoded is left to the loader, which lists it."""

    def prepare(data: bytes) -> np.ndarray:
        return prepare_image(data, rule)

    try:
        return encode_cached(model.tower, cache, pictures, prepare)
    except ValueError:
        if len(pictures) == 1:
            return np.empty((0, model.tower.num_tokens, model.tower.width), np.float32)
        parts: Iterator[np.ndarray] = (_encode(model, rule, cache, [picture]) for picture in pictures)
        return np.concatenate(list(parts))


def _reader(cache: FeatureCache):
    """Picture -> its features; the cache was filled before, so what it lacks is what could not be decoded."""

    def read(image: Image) -> Prepared:
        features = cache.get(image.data) if image.data is not None else None
        if features is None:
            raise ValueError("the picture could not be decoded when features were made.")
        return Prepared(features[None], (1, image.height, image.width))

    return read
