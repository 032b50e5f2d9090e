"""From shards to batches: every document once an epoch, damage listed, threads gone afterwards."""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rebus.batches.batch import Batch
from rebus.batches.feed import Feed, Preparation, build_batch, open_feed, plan_images
from rebus.batches.indexes import Indexes
from rebus.batches.loader import iterate_batches
from rebus.batches.order import step_packs
from rebus.errors import ConfigError, UnreachableError
from rebus.mesh import Mesh
from rebus.packs.config import PackRecipe
from rebus.packs.run import run
from rebus.pictures.prepare import Prepared, normalise
from rebus.records import Image
from rebus.tokens.config import FixedConfig, TokensConfig
from tiny_samples import TinySample, tiny_picture, write_shards


@pytest.fixture
def make_feed(tmp_path: Path, tiny_tokenizer_folder: Path) -> Callable[..., Feed]:
    def make(shards: Path, preparation: Preparation | None = None, **changes) -> Feed:
        image = FixedConfig(size=8, tokens_per_side=2)
        tokens = TokensConfig(tokenizer=tiny_tokenizer_folder, image=image)
        settings = {"tokens": tokens, "out": tmp_path / "plan", "capacity": 96, "num_workers": 1}
        run(PackRecipe(shards=[shards], **settings | changes))
        return open_feed(tmp_path / "plan", preparation=preparation)

    return make


def test_an_epoch_holds_every_document_once(make_feed, tiny_shards):
    feed = make_feed(tiny_shards(40))
    batches = [b for _, row in iterate_batches(feed, range(feed.num_packs), packs_per_step=1, seed=3) for b in row]
    assert sorted(key for batch in batches for key in batch.keys) == [f"{i:09d}" for i in range(40)]
    assert all(batch.num_tokens <= 96 for batch in batches)
    assert sum(batch.num_images for batch in batches) == 40
    assert not any(batch.damage for batch in batches)


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
    assert all(one.shard == str(tmp_path / "shards" / "00000.tar") and one.offset >= 0 for one in batch.damage)
    assert len(batch.keys) == 8
    assert batch.num_images == 8


def test_storage_that_does_not_answer_damages_no_sample(make_feed, tiny_shards, monkeypatch):
    feed = make_feed(tiny_shards(8))

    def fail(*_: object) -> None:
        raise UnreachableError("s3://bucket/00000.tar cannot be read")

    monkeypatch.setattr("rebus.batches.feed.read_sample", fail)
    with pytest.raises(UnreachableError):
        next(iterate_batches(feed, [0], packs_per_step=1, seed=0))
    with pytest.raises(UnreachableError):
        next(plan_images(feed))


def test_a_batch_of_nothing_but_damage_trains_on_nothing(make_feed, tmp_path: Path):
    shards = write_shards(tmp_path / "shards", [TinySample("a photo", tiny_picture(size=(99, 99))[:50])])
    batch = build_batch(make_feed(shards), (0,))
    assert (batch.num_tokens, batch.num_supervised, batch.num_images) == (1, 0, 0)
    assert len(batch.damage) == 1


def test_features_may_take_the_place_of_pixels(make_feed, tiny_shards):
    seen: list[Image] = []

    def features(image: Image) -> Prepared:
        seen.append(image)
        return Prepared(np.ones((1, 4, 5), dtype=np.float32), (1, image.height, image.width))

    feed = make_feed(tiny_shards(8), Preparation(features, (4, 5), is_raw=False))
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


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_error_comes_at_its_own_step(make_feed, tiny_shards, monkeypatch, num_workers: int):
    feed = make_feed(tiny_shards(40))
    bad = step_packs(2, num_packs=feed.num_packs, packs_per_step=1, seed=0, costs=feed.plan.costs)

    def build(feed: Feed, packs: tuple[int, ...]) -> Batch:
        if packs == bad:
            raise RuntimeError("this pack")
        return build_batch(feed, packs)

    monkeypatch.setattr("rebus.batches.loader.build_batch", build)
    steps, seen = iterate_batches(feed, range(9), packs_per_step=1, seed=0, num_workers=num_workers, prefetch=4), []
    with pytest.raises(RuntimeError, match="this pack"):
        seen += [step for step, _ in steps]
    for step, _ in iterate_batches(feed, range(2), packs_per_step=1, seed=0, num_workers=num_workers, prefetch=4):
        seen.append(step)
    assert seen == [0, 1]
    assert not loader_threads()


@pytest.mark.parametrize(("num_workers", "prefetch", "most"), [(0, 5, 3), (1, 0, 3), (2, 2, 5), (4, 1, 4)])
def test_no_more_is_built_than_asked_for(make_feed, tiny_shards, monkeypatch, num_workers, prefetch, most):
    """After three steps were taken, at most `prefetch` steps beyond them were started."""
    started: list[tuple[int, ...]] = []

    def build(feed: Feed, packs: tuple[int, ...]) -> Batch:
        started.append(packs)
        return build_batch(feed, packs)

    monkeypatch.setattr("rebus.batches.loader.build_batch", build)
    feed = make_feed(tiny_shards(40))
    steps = iterate_batches(feed, range(10**9), packs_per_step=1, seed=0, num_workers=num_workers, prefetch=prefetch)
    for _ in range(3):
        next(steps)
    steps.close()
    assert 3 <= len(started) <= most


def test_pixels_travel_as_bytes_and_arrive_normalised(make_feed, tiny_shards):
    feed = make_feed(tiny_shards(8))
    batch = build_batch(feed, (0,))
    assert (batch.pixels.dtype, batch.image) == (torch.uint8, feed.plan.tokens.image)
    arrived = batch.to("cpu")
    wanted = normalise(batch.pixels.numpy(), feed.plan.tokens.image)
    assert arrived.pixels.dtype == torch.float32
    assert np.array_equal(arrived.pixels.numpy(), np.stack(wanted))
    assert torch.equal(arrived.to("cpu").pixels, arrived.pixels), "normalised once"


def test_batches_are_pinned_where_there_is_a_gpu(make_feed, tiny_shards):
    feed = make_feed(tiny_shards(8))
    [(_, [batch])] = iterate_batches(feed, [0], packs_per_step=1, seed=0, pin=True)
    [(_, [plain])] = iterate_batches(feed, [0], packs_per_step=1, seed=0)
    assert batch.pixels.is_pinned() == batch.ids.is_pinned() == torch.cuda.is_available()
    assert torch.equal(batch.pixels, plain.pixels)


def test_across_documents_a_pack_is_one_stretch(make_feed, tiny_shards):
    feed = make_feed(tiny_shards(40), cross_document=True)
    apart = replace(feed, plan=replace(feed.plan, manifest=replace(feed.plan.manifest, facts=isolated(feed))))
    joined, alone = build_batch(feed, (0, 1)), build_batch(apart, (0, 1))
    assert torch.equal(joined.ids, alone.ids)
    assert torch.equal(joined.slots, alone.slots)
    assert (joined.uids, joined.keys) == (alone.uids, alone.keys)
    packs = [build_batch(apart, (pack,)).num_tokens for pack in (0, 1)]
    assert joined.bounds.tolist() == [0, packs[0], sum(packs)]
    assert joined.positions.tolist() == [*range(packs[0]), *range(packs[1])]
    assert joined.names == ()
    differs = torch.nonzero(joined.labels != alone.labels).flatten().tolist()
    ends = [end - 1 for end in alone.bounds.tolist()[1:]]
    assert set(differs) <= set(ends) - {packs[0] - 1, sum(packs) - 1}


def test_across_documents_the_token_that_opens_one_is_predicted_from_the_end_of_the_one_before(
    make_feed, tiny_shards, tiny_tokenizer_folder: Path
):
    """As Open-Qwen2VL was trained (reference: its packs carry a loss on every document's <s>)."""
    tokens = TokensConfig(
        tokenizer=tiny_tokenizer_folder, image=FixedConfig(size=8, tokens_per_side=2), start_of_text="<|im_start|>"
    )
    feed = make_feed(tiny_shards(40), cross_document=True, tokens=tokens)
    apart = replace(feed, plan=replace(feed.plan, manifest=replace(feed.plan.manifest, facts=isolated(feed))))
    joined, alone = build_batch(feed, (0,)), build_batch(apart, (0,))
    ends = [end - 1 for end in alone.bounds.tolist()[1:-1]]
    assert len(ends) > 1
    assert joined.labels[ends].tolist() == [1] * len(ends)
    assert torch.nonzero(joined.labels != alone.labels).flatten().tolist() == ends


def isolated(feed: Feed) -> dict:
    return {**feed.plan.manifest.facts, "cross_document": False}


def test_indexes_are_closed_as_others_are_opened(make_feed, tiny_shards):
    feed = make_feed(tiny_shards(40))
    indexes = Indexes(max_rows=20)
    shards = feed.plan.shards
    assert [indexes.open(shard).num_samples for shard in shards] == [16, 16, 8]
    assert list(indexes._opened) == [shards[2]] or sum(one.num_samples for one in indexes._opened.values()) <= 20
    assert indexes.open(shards[2]) is indexes.open(shards[2])
    first = indexes.open(shards[0])
    assert first.place(3)["key"] == "000000003"


def test_unequal_ranks_are_refused(make_feed, tiny_shards):
    feed = make_feed(tiny_shards(8))
    with pytest.raises(ConfigError, match=r"does not divide among 3 ranks .* multiple of 3, such as 3"):
        next(iterate_batches(feed, [0], packs_per_step=4, seed=0, mesh=Mesh(0, 3)))
