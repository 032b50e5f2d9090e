"""A plan made ready to read: its tokenizer loaded, its shards' indexes opened as they are needed."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from rebus.batches.batch import Batch
from rebus.batches.collate import Document, collate
from rebus.errors import DataError
from rebus.packs.plan import Plan, Reference, open_plan
from rebus.pictures import ImageConfig, prepare_image
from rebus.records import Damage, Image
from rebus.shards.read import read_index, read_sample
from rebus.tokens.config import TokensConfig
from rebus.tokens.encode import Encoded, UnusableSample, encode
from rebus.tokens.tokenizer import Tokens, load_tokens, special_id


@dataclass(frozen=True)
class Preparation:
    """What fills an image slot. function: Image -> float32 array of `shape`: pixels (3, H, W), or cached features
    (tokens, C). It raises ValueError for a picture that it cannot use, and runs in the loader's threads."""

    function: Callable[[Image], np.ndarray]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Feed:
    """An opened plan with what it takes to build its batches. Make it with `open_feed`."""

    plan: Plan
    tokens: Tokens
    preparation: Preparation
    indexes: dict[Path, pa.Table] = field(default_factory=dict, repr=False)

    @property
    def num_packs(self) -> int:
        return self.plan.num_packs


def open_feed(folder: Path, *, tokens: TokensConfig | None = None, preparation: Preparation | None = None) -> Feed:
    """Opens a plan for reading.

    tokens: None takes the plan's own rules. preparation: None decodes and resizes pixels (pictures.prepare_image).
    Raises: StrangerError where tokenizer, rules or shards are not those of the plan; DataError.
    """
    plan = open_plan(folder, tokens)
    return Feed(plan, load_tokens(plan.tokens), preparation or pixels_of(plan.tokens.image))


def pixels_of(config: ImageConfig) -> Preparation:
    """The default preparation: decoded, resized, normalised pixels."""
    return Preparation(partial(_pixels, config=config), (3, config.size, config.size))


def build_batch(feed: Feed, packs: tuple[int, ...]) -> Batch:
    """Reads, encodes and collates the documents of some packs. A document that cannot be loaded is left out and listed
    in `damage`; nothing takes its place."""
    documents: list[Document] = []
    damage: list[Damage] = []
    for pack in packs:
        for reference in feed.plan.documents(pack):
            loaded = load_document(feed, reference)
            if isinstance(loaded, Damage):
                damage.append(loaded)
            else:
                documents.append(loaded)
    return collate(documents or [_nothing(feed.tokens)], feed.preparation.shape, tuple(damage))


def load_document(feed: Feed, reference: Reference) -> Document | Damage:
    """One document of a plan, or why it cannot be trained on."""
    index = _index_of(feed, reference.shard)
    if reference.row >= index.num_rows:
        return Damage(reference.shard.name, reference.uid, -1, "not in the index", f"row {reference.row}")
    place = index.slice(reference.row, 1).to_pylist()[0]
    try:
        encoded = encode(read_sample(reference.shard, place), feed.tokens)
        _check_count(encoded, reference)
        arrays = tuple(feed.preparation.function(image) for image in encoded.images)
    except UnusableSample as error:
        return Damage(reference.shard.name, place["key"], place["offset"], error.reason, error.detail)
    except DataError as error:
        return Damage(reference.shard.name, place["key"], place["offset"], "unreadable", str(error))
    except ValueError as error:
        return Damage(reference.shard.name, place["key"], place["offset"], "undecodable image", str(error))
    return Document(encoded, arrays, reference.uid, place["key"])


def plan_images(feed: Feed) -> Iterator[Image]:
    """Every picture of the plan, in the plan's order; samples that cannot be read are left to the loader to list."""
    for pack in range(feed.num_packs):
        for reference in feed.plan.documents(pack):
            index = _index_of(feed, reference.shard)
            try:
                yield from read_sample(reference.shard, index.slice(reference.row, 1).to_pylist()[0]).images
            except DataError:
                continue


def _check_count(encoded: Encoded, reference: Reference) -> None:
    if encoded.num_tokens != reference.num_tokens:
        raise UnusableSample("not as planned", f"{encoded.num_tokens} tokens, the plan has {reference.num_tokens}")


def _index_of(feed: Feed, shard: Path) -> pa.Table:
    """Indexes stay open: an Arrow row takes about 120 bytes, so ten million samples take 1.2 GB. Two threads that
    read one at the same time read the same."""
    if shard not in feed.indexes:
        feed.indexes[shard] = read_index(shard)
    return feed.indexes[shard]


def _pixels(image: Image, config: ImageConfig) -> np.ndarray:
    if image.data is None:
        raise ValueError("the image has a size but no data.")
    return prepare_image(image.data, config)


def _nothing(tokens: Tokens) -> Document:
    """Stands where every document of a batch failed: one token that nothing is learnt from, so that every rank still
    walks the same graph."""
    end = special_id(tokens.tokenizer, tokens.config.end_of_text)
    empty = np.empty(0, dtype=np.int32)
    return Document(Encoded(np.array([end], np.int32), np.array([False]), empty, empty, ()), (), "", "")
