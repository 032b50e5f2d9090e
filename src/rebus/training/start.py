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
from rebus.model.families import VisionLanguageModel, add_lora, build
from rebus.pictures import ImageConfig, prepare_image
from rebus.records import Image
from rebus.towers import FeatureCache, encode_cached, tower_fingerprint
from rebus.training.config import TrainRecipe

CHUNK = 32


def open_start(recipe: TrainRecipe) -> tuple[Feed, VisionLanguageModel]:
    """The plan and the model of a recipe, as they are before step 0.

    Raises: ConfigError where plan and model disagree on the number of tokens an image takes.
    """
    feed = open_feed(recipe.plan, shard_cache=recipe.shard_cache, shard_cache_gb=recipe.shard_cache_gb)
    model = _open_model(recipe)
    image = feed.plan.tokens.image
    if image.tokens_per_side != model.config.tokens_per_side:
        raise ConfigError(
            f"{recipe.plan} was planned with tokens_per_side = {image.tokens_per_side}, the model makes "
            f"{model.config.tokens_per_side}. Pack again, or change the model."
        )
    if recipe.feature_cache is None:
        return feed, model
    cache = open_cache(recipe.feature_cache, model, image)
    statistics = recipe.standardise_features and recipe.model is not None
    fill_cache(feed, model, cache, standardise=statistics)
    shape = (model.connector.num_features, model.connector.feature_width)
    return replace(feed, preparation=Preparation(_reader(cache), shape)), model


def _open_model(recipe: TrainRecipe) -> VisionLanguageModel:
    if recipe.model is not None:
        config = recipe.model.model_copy(update={"lora": recipe.lora})
        return build(config, seed=recipe.seed)
    assert recipe.init is not None
    model, _ = load_model(recipe.init)
    if recipe.lora is not None and model.config.lora is None:
        model.config = model.config.model_copy(update={"lora": recipe.lora})
        torch.manual_seed(recipe.seed)
        add_lora(model.language, model.config)
    return model


def open_cache(folder: Path, model: VisionLanguageModel, image: ImageConfig) -> FeatureCache:
    """The cache of what this model's tower makes of pictures prepared by this rule."""
    return FeatureCache(folder, tower_fingerprint(model.config.tower), image.fingerprint)


def fill_cache(feed: Feed, model: VisionLanguageModel, cache: FeatureCache, *, standardise: bool) -> None:
    """Runs the frozen tower once over every picture of the plan; what the cache has already is only read.

    standardise: gives the connector the mean and standard deviation of every channel over the plan's pictures.
    """
    width = model.connector.feature_width
    count, total, squares = 0, np.zeros(width), np.zeros(width)
    images = iter(track(plan_images(feed), "encoding pictures", total=feed.plan.num_images))
    while chunk := list(islice(images, CHUNK)):
        features = _encode(model, cache, [image.data for image in chunk if image.data is not None], feed)
        if standardise and len(features):
            pooled = model.connector.pool(torch.from_numpy(features)).double().numpy().reshape(-1, width)
            count += len(pooled)
            total += pooled.sum(axis=0)
            squares += np.square(pooled).sum(axis=0)
    if standardise and count:
        mean = total / count
        std = np.sqrt(np.maximum(squares / count - mean**2, 0))
        model.connector.set_statistics(torch.from_numpy(mean).float(), torch.from_numpy(std).float())


def _encode(model: VisionLanguageModel, cache: FeatureCache, pictures: list[bytes], feed: Feed) -> np.ndarray:
    """Features of a chunk; a picture that cannot be decoded is left to the loader, which lists it."""

    def prepare(data: bytes) -> np.ndarray:
        return prepare_image(data, feed.plan.tokens.image)

    try:
        return encode_cached(model.tower, cache, pictures, prepare)
    except ValueError:
        if len(pictures) == 1:
            return np.empty((0, model.connector.num_features, model.connector.feature_width), np.float32)
        parts: Iterator[np.ndarray] = (_encode(model, cache, [picture], feed) for picture in pictures)
        return np.concatenate(list(parts))


def _reader(cache: FeatureCache):
    """Image -> its features; the cache was filled before, so what it lacks is what could not be decoded."""

    def read(image: Image) -> np.ndarray:
        features = cache.get(image.data) if image.data is not None else None
        if features is None:
            raise ValueError("the picture could not be decoded when features were made.")
        return features

    return read
