"""From shards to batches: every document once an epoch, damage listed, threads gone afterwards."""

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from rebus.batches.feed import Feed, Preparation, build_batch, open_feed
from rebus.batches.loader import iterate_batches
from rebus.errors import ConfigError
from rebus.mesh import Mesh
from rebus.packs.config import PackRecipe
from rebus.packs.run import run
from rebus.records import Image
from rebus.tokens.config import ImageConfig, TokensConfig
from tiny_samples import TinySample, tiny_picture, write_shards


@pytest.fixture
def make_feed(tmp_path: Path, tiny_tokenizer_folder: Path) -> Callable[..., Feed]:
    def make(shards: Path, preparation: Preparation | None = None, **changes) -> Feed:
        image = ImageConfig(size=8, tokens_per_side=2)
        tokens = TokensConfig(tokenizer=tiny_tokenizer_folder, image=image)
        recipe = PackRecipe(
            shards=[shards], tokens=tokens, out=tmp_path / "plan", **{"capacity": 96, "num_workers": 1} | changes
        )
        run(recipe)
        return open_feed(tmp_path / "plan", preparation=preparation)

    return make


def test_an_epoch_holds_every_document_once(make_feed, tiny_shards):
    feed = make_feed(tiny_shards(40))
    batches = [b for _, row in iterate_batches(feed, range(feed.num_packs), packs_per_step=1, seed=3) for b in row]
    assert sorted(key for batch in batches for key in batch.keys) == [f"{i:09d}" for i in range(40)]
    assert all(batch.num_tokens <= 96 for batch in batches)
    assert sum(batch.num_images for batch in batches) == 40
    assert not any(batch.damage for batch in batches)


@pytest.mark.parametrize("num_workers", [1, 3])
def test_worker_and_rank_numbers_change_no_batch(make_feed, tiny_shards, num_workers: int):
    feed = make_feed(tiny_shards(40))
    wanted = [build_batch(feed, (pack,)) for pack in range(feed.num_packs)]
    by_ids = {batch.keys: batch for batch in wanted}
    ranks = [
        dict(iterate_batches(feed, [5, 6], packs_per_step=4, seed=1, mesh=Mesh(rank, 2), num_workers=num_workers))
        for rank in range(2)
    ]
    alone = dict(iterate_batches(feed, [5, 6], packs_per_step=4, seed=1))
    for step in (5, 6):
        joined = [ranks[i % 2][step][i // 2] for i in range(4)]
        assert [batch.keys for batch in joined] == [batch.keys for batch in alone[step]]
        for batch in joined:
            assert torch.equal(batch.ids, by_ids[batch.keys].ids)
            assert torch.equal(batch.pixels, by_ids[batch.keys].pixels)


def test_several_packs_in_a_micro_batch(make_feed, tiny_shards):
    feed = make_feed(tiny_shards(40))
    [(_, [batch])] = iterate_batches(feed, [0], packs_per_step=2, packs_per_batch=2, seed=0)
    [(_, parts)] = iterate_batches(feed, [0], packs_per_step=2, seed=0)
    assert batch.keys == parts[0].keys + parts[1].keys


def damaged_shards(folder: Path) -> Path:
    """Two samples whose header is good and whose pixels are cut off, among ten."""
    noise = np.random.default_rng(0).bytes(64)
    pictures = [tiny_picture() if i % 5 else tiny_picture(size=(200, 200))[:60] + noise for i in range(10)]
    return write_shards(folder, [TinySample(f"a photo {i}", picture) for i, picture in enumerate(pictures)])


def test_undecodable_images_cost_themselves_alone(make_feed, tmp_path: Path):
    feed = make_feed(damaged_shards(tmp_path / "shards"))
    batch = build_batch(feed, tuple(range(feed.num_packs)))
    assert sorted(one.key for one in batch.damage) == ["000000000", "000000005"]
    assert {one.reason for one in batch.damage} == {"undecodable image"}
    assert all(one.shard == "00000.tar" and one.offset >= 0 for one in batch.damage)
    assert len(batch.keys) == 8
    assert batch.num_images == 8


def test_a_batch_of_nothing_but_damage_trains_on_nothing(make_feed, tmp_path: Path):
    shards = write_shards(tmp_path / "shards", [TinySample("a photo", tiny_picture(size=(99, 99))[:50])])
    batch = build_batch(make_feed(shards), (0,))
    assert (batch.num_tokens, batch.num_supervised, batch.num_images) == (1, 0, 0)
    assert len(batch.damage) == 1


def test_features_may_take_the_place_of_pixels(make_feed, tiny_shards):
    seen: list[Image] = []

    def features(image: Image) -> np.ndarray:
        seen.append(image)
        return np.ones((4, 5), dtype=np.float32)

    feed = make_feed(tiny_shards(8), Preparation(features, (4, 5)))
    batch = build_batch(feed, (0,))
    assert batch.pixels.shape == (len(seen), 4, 5)
    assert all(image.data for image in seen)


def loader_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("rebus-batches")]


def test_leaving_early_stops_the_threads(make_feed, tiny_shards):
    feed = make_feed(tiny_shards(40))
    batches = iterate_batches(feed, range(10**9), packs_per_step=1, seed=0)
    next(batches)
    assert loader_threads()
    batches.close()
    assert not loader_threads()


def test_an_error_in_a_thread_reaches_the_reader(make_feed, tiny_shards):
    def broken(image: Image) -> np.ndarray:
        raise RuntimeError("the tower fell")

    feed = make_feed(tiny_shards(8), Preparation(broken, (4, 5)))
    with pytest.raises(RuntimeError, match="the tower fell"):
        list(iterate_batches(feed, range(3), packs_per_step=1, seed=0))
    assert not loader_threads()


def test_unequal_ranks_are_refused(make_feed, tiny_shards):
    feed = make_feed(tiny_shards(8))
    with pytest.raises(ConfigError, match=r"does not divide among 3 ranks .* multiple of 3, such as 3"):
        next(iterate_batches(feed, [0], packs_per_step=4, seed=0, mesh=Mesh(0, 3)))
