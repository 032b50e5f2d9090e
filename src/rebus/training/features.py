"""What a frozen tower makes of a plan's pictures, computed once, before the first step, and kept across epochs."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from rebus.batches.feed import Feed, Preparation, plan_images
from rebus.errors import ConfigError
from rebus.fingerprint import file_fingerprint, fingerprint
from rebus.log import track
from rebus.model.connector import pool
from rebus.model.families import VisionLanguageModel
from rebus.pictures.config import FixedConfig
from rebus.pictures.prepare import Prepared, Visual, prepare_image
from rebus.records import Image
from rebus.towers.cache import FeatureCache, encode_cached
from rebus.towers.config import tower_fingerprint

CHUNK = 32


def cached(feed: Feed, model: VisionLanguageModel, folder: Path, *, standardise: bool) -> Feed:
    """The feed with features in place of pixels; what the cache lacks is made first.

    standardise: gives the connector the mean and standard deviation of every channel over the plan's pictures.
    Raises: ConfigError where the plan's pictures are not squares.
    """
    image = feed.plan.tokens.image
    if not isinstance(image, FixedConfig):
        raise ConfigError(f"feature_cache keeps features of square pictures; the plan's are of kind '{image.kind}'.")
    cache = open_cache(folder, model, image)
    fill_cache(feed, model, image, cache, standardise=standardise)
    shape = (model.tower.num_tokens, model.tower.width)
    return replace(feed, preparation=Preparation(_reader(cache), shape, is_raw=False))


def open_cache(folder: Path, model: VisionLanguageModel, image: FixedConfig) -> FeatureCache:
    """The cache of what this model's tower makes of pictures prepared by this rule."""
    return FeatureCache(folder, _maker(model), image.fingerprint)


def _maker(model: VisionLanguageModel) -> str:
    """The tower's fingerprint; other weights than its config names, and fewer bits, make other features."""
    base, more = tower_fingerprint(model.config.tower), {}
    if model.trained_tower is not None:
        more = {path.name: file_fingerprint(path) for path in sorted(model.trained_tower.iterdir())}
    dtype = next(model.tower.parameters()).dtype
    if dtype != torch.float32:
        more["dtype"] = str(dtype)
    return fingerprint({"tower": base, **more}) if more else base


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


def _reader(cache: FeatureCache) -> Callable[[Visual], Prepared]:
    """Picture -> its features; the cache was filled before, so what it lacks is what could not be decoded."""

    def read(image: Visual) -> Prepared:
        assert isinstance(image, Image)
        features = cache.get(image.data) if image.data is not None else None
        if features is None:
            raise ValueError("the picture could not be decoded when features were made.")
        return Prepared(features[None], (1, image.height, image.width))

    return read
