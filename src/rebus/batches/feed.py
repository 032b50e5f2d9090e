"""A plan made ready to read: its tokenizer loaded, its shards' indexes opened as they are needed."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from rebus.batches.batch import Batch
from rebus.batches.collate import Document, collate
from rebus.batches.indexes import Indexes
from rebus.errors import DataError, UnreachableError
from rebus.packs.plan import Plan, Reference, open_plan
from rebus.pictures.config import ImageConfig
from rebus.pictures.prepare import Prepared, Visual, prepare
from rebus.records import Damage, Image
from rebus.shards.cache import ShardCache
from rebus.shards.damage import UNDECODABLE_IMAGE
from rebus.shards.read import read_sample
from rebus.tokens.config import TokensConfig
from rebus.tokens.encode import UNREADABLE, Encoded, UnusableSample, encode
from rebus.tokens.tokenizer import Tokens, load_tokens, special_id

NO_GRIDS = np.empty((0, 3), np.int32), np.empty(0, np.float32)


@dataclass(frozen=True)
class Preparation:
    """What fills an image slot. function: picture or video -> Prepared with rows of `shape`. It raises ValueError for
    one that it cannot use, and runs in the loader's threads.

    is_raw: the rows are uint8 pixels, normalised once they are on the device; else float32 as the model takes them:
    normalised pixels, or cached features (tokens, C).
    """

    function: Callable[[Visual], Prepared]
    shape: tuple[int, ...]
    is_raw: bool = True


@dataclass(frozen=True)
class Feed:
    """An opened plan with what it takes to build its batches. Make it with `open_feed`."""

    plan: Plan
    tokens: Tokens
    preparation: Preparation
    indexes: Indexes = field(default_factory=Indexes, repr=False)
    cache: ShardCache | None = None

    @property
    def num_packs(self) -> int:
        return self.plan.num_packs


def open_feed(
    folder: Path,
    *,
    tokens: TokensConfig | None = None,
    preparation: Preparation | None = None,
    shard_cache: Path | None = None,
    shard_cache_gb: float = 20,
) -> Feed:
    """Opens a plan for reading.

    tokens: None takes the plan's own rules. preparation: None decodes and resizes pixels (pictures.prepare).
    shard_cache: folder that keeps remote shards while they are read; None asks for every sample by its range.
    Raises: StrangerError where tokenizer, rules or shards are not those of the plan; DataError.
    """
    plan = open_plan(folder, tokens)
    cache = ShardCache(shard_cache, int(shard_cache_gb * 1e9)) if shard_cache is not None else None
    return Feed(plan, load_tokens(plan.tokens), preparation or pixels_of(plan.tokens.image), cache=cache)


def pixels_of(config: ImageConfig) -> Preparation:
    """The default preparation: decoded and resized pixels."""
    return Preparation(partial(prepare, config=config), config.row_shape)


def build_batch(feed: Feed, packs: tuple[int, ...]) -> Batch:
    """Reads, encodes and collates the documents of some packs. A document that cannot be loaded is left out and listed
    in `damage`; nothing takes its place.

    All texts come before all pictures: after a picture went through the processor's caches, the code that reads and
    encodes a text runs three times as long (0.45 ms a document, 0.15 ms side by side).
    """
    found = [[_read(feed, one) for one in feed.plan.documents(pack)] for pack in packs]
    loaded = [[_prepare(feed, one) for one in pack] for pack in found]
    kept = [[one for one in pack if isinstance(one, Document)] for pack in loaded]
    together = [len(pack) for pack in kept if pack] or [1]
    return collate(
        [one for pack in kept for one in pack] or [_nothing(feed.tokens)],
        feed.preparation.shape,
        feed.plan.tokens.image,
        tuple(one for pack in loaded for one in pack if isinstance(one, Damage)),
        is_raw=feed.preparation.is_raw,
        together=together if feed.plan.cross_document else None,
    )


def load_document(feed: Feed, reference: Reference) -> Document | Damage:
    """One document of a plan, or why it cannot be trained on."""
    return _prepare(feed, _read(feed, reference))


def _read(feed: Feed, reference: Reference) -> "_Undecoded | Damage":
    """A document read and tokenised, its pictures not yet decoded.

    Raises: UnreachableError: storage that is down damages no sample, and a run that stops goes on exactly.
    """
    index, shard = feed.indexes.open(reference.shard), reference.shard
    if reference.row >= index.num_samples:
        return Damage(str(shard), reference.uid, -1, "not in the index", f"row {reference.row}")
    place = index.place(reference.row)
    try:
        sample = read_sample(shard, place, index.link, feed.cache)
        encoded = encode(reference.cut(sample), feed.tokens)
        _check_count(encoded, reference)
    except UnusableSample as error:
        return Damage(str(shard), place["key"], place["offset"], error.reason, error.detail)
    except UnreachableError:
        raise
    except DataError as error:
        return Damage(str(shard), place["key"], place["offset"], UNREADABLE, str(error))
    return _Undecoded(encoded, reference, place["key"], place["offset"])


def _prepare(feed: Feed, found: "_Undecoded | Damage") -> Document | Damage:
    if isinstance(found, Damage):
        return found
    try:
        arrays = tuple(_rows(feed, found.encoded, number) for number in range(len(found.encoded.images)))
    except ValueError as error:
        return Damage(str(found.reference.shard), found.key, found.offset, UNDECODABLE_IMAGE, str(error))
    return Document(found.encoded, arrays, found.reference.uid, found.key)


@dataclass(frozen=True)
class _Undecoded:
    """Between reading and decoding. offset: of the sample in its shard's data."""

    encoded: Encoded
    reference: Reference
    key: str
    offset: int


def plan_images(feed: Feed) -> Iterator[Image]:
    """Every picture of the plan, in the plan's order; samples that cannot be read are left to the loader to list."""
    for pack in range(feed.num_packs):
        for reference in feed.plan.documents(pack):
            index = feed.indexes.open(reference.shard)
            try:
                sample = read_sample(reference.shard, index.place(reference.row), index.link, feed.cache)
                yield from reference.cut(sample).images
            except UnreachableError:
                raise
            except DataError:
                continue


def _check_count(encoded: Encoded, reference: Reference) -> None:
    if encoded.num_tokens != reference.num_tokens:
        raise UnusableSample("not as planned", f"{encoded.num_tokens} tokens, the plan has {reference.num_tokens}")


def _rows(feed: Feed, encoded: Encoded, number: int) -> np.ndarray:
    """Raises: ValueError where the decoded picture does not have the shape that its slot was counted for."""
    prepared, planned = feed.preparation.function(encoded.images[number]), tuple(encoded.grids[number].tolist())
    if prepared.grid != planned:
        raise ValueError(f"image {number} is {prepared.grid} where {planned} was planned; index its shard again")
    return prepared.rows


def _nothing(tokens: Tokens) -> Document:
    """Stands where every document of a batch failed: one token that nothing is learnt from, so that every rank still
    walks the same graph."""
    end = special_id(tokens.tokenizer, tokens.config.end_of_text)
    empty = np.empty(0, dtype=np.int32)
    return Document(Encoded(np.array([end], np.int32), np.array([False]), empty, empty, (), *NO_GRIDS), (), "", "")
