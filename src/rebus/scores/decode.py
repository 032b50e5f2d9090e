"""One decode for all scorers: samples in the shards' order, decoded by threads some batches ahead."""

import concurrent.futures
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rebus.pictures.decode import decode_image
from rebus.records import Damage, Image, Sample, Text
from rebus.shards.damage import UNDECODABLE_IMAGE
from rebus.shards.read import iterate_lazily

if TYPE_CHECKING:
    import PIL.Image

NUM_TOGETHER = 8  # samples a thread is given at once: small pictures decode in half a millisecond


@dataclass(frozen=True)
class Decoded:
    """What a scorer sees of a sample. picture is RGB; it and image_bytes are None where the sample has no image."""

    uid: str
    key: str
    text: str
    image_bytes: bytes | None
    picture: "PIL.Image.Image | None"


@dataclass(frozen=True)
class Looked:
    """What is left of a decoded sample: its names, and what each scorer took of it."""

    uid: str
    key: str
    taken: tuple[Any, ...]


Look = Callable[[Decoded], Any]
Task = tuple[dict[str, Any], Callable[[], Sample]]


@dataclass(frozen=True)
class Looking:
    """How samples are looked at. pictures: whether they are decoded at all. num_ahead: samples that may wait, looked
    at, for whoever takes them. may_go_on: cleared by who needs all cores for a while; threads stop at the next sample.
    """

    looks: list[Look]
    pictures: bool
    num_threads: int
    num_ahead: int
    may_go_on: threading.Event


def look_at(shards: Iterable[Path], looking: Looking) -> Iterator[tuple[Path, list[Looked | Damage] | None]]:
    """Yields (shard, some of its samples in order), and (shard, None) when a shard is over."""
    with (
        concurrent.futures.ThreadPoolExecutor(1) as reader,
        concurrent.futures.ThreadPoolExecutor(looking.num_threads) as decoders,
    ):
        pieces = _ahead(_pieces(shards), reader)
        waiting: deque[tuple[Path, concurrent.futures.Future | None]] = deque()
        try:
            while True:
                for shard, tasks in islice(pieces, max(1, looking.num_ahead // NUM_TOGETHER - len(waiting) + 1)):
                    work = decoders.submit(_look_all, shard, tasks, looking) if tasks is not None else None
                    waiting.append((shard, work))
                if not waiting:
                    return
                shard, future = waiting.popleft()
                yield shard, future.result() if future is not None else None
        finally:
            looking.may_go_on.set()
            for pool in (reader, decoders):
                pool.shutdown(cancel_futures=True)


def _pieces(shards: Iterable[Path]) -> Iterator[tuple[Path, list[Task] | None]]:
    """Every shard in pieces of NUM_TOGETHER samples, read but not opened, and None behind its last."""
    for shard in shards:
        tasks = iterate_lazily(shard)
        while piece := list(islice(tasks, NUM_TOGETHER)):
            yield shard, piece
        yield shard, None


def _ahead(items: Iterator[Any], reader: concurrent.futures.Executor) -> Iterator[Any]:
    """The same items, the next one always being fetched by a thread: storage may be far away."""
    end = object()
    following = reader.submit(next, items, end)
    while (item := following.result()) is not end:
        following = reader.submit(next, items, end)
        yield item


def _look_all(shard: Path, tasks: list[Task], looking: Looking) -> list[Looked | Damage]:
    return [_look(shard, row, make, looking) for row, make in tasks]


def _look(shard: Path, row: dict[str, Any], make: Callable[[], Sample], looking: Looking) -> Looked | Damage:
    looking.may_go_on.wait()
    sample = make()
    try:
        decoded = _decode(sample, looking.pictures)
    except ValueError as error:
        return Damage(shard.name, sample.key, int(row["offset"]), UNDECODABLE_IMAGE, str(error))
    return Looked(sample.uid, sample.key, tuple(look(decoded) for look in looking.looks))


def _decode(sample: Sample, pictures: bool) -> Decoded:
    """The first picture stands for a sample with several."""
    text = " ".join(part.text for part in sample.parts if isinstance(part, Text))
    image: Image | None = sample.images[0] if sample.images else None
    data = image.data if image else None
    return Decoded(sample.uid, sample.key, text, data, decode_image(data) if pictures and data is not None else None)
