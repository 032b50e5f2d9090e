"""Contract 4 with real batches: the same for 1, 2, 3, 4 and 8 ranks and 0, 1, 2 and 4 workers, bit for bit; and a run
that stops and goes on, anywhere, with any number of ranks, trains on what an uninterrupted one does."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rebus.batches.batch import TENSORS, Batch
from rebus.batches.feed import Feed, Preparation, open_feed
from rebus.batches.loader import iterate_batches
from rebus.mesh import Mesh
from rebus.packs.config import PackRecipe
from rebus.packs.run import run as pack
from rebus.pictures.config import FixedConfig
from rebus.pictures.prepare import Prepared
from rebus.records import Image
from rebus.tokens.config import TokensConfig
from tiny_samples import TinySample, tiny_picture, write_shards

WORLDS, WORKERS = [1, 2, 3, 4, 8], [0, 1, 2, 4]
PER_STEP = 24  # divides among all of WORLDS
COLOURS = ["red", "green", "blue", "white", "black"]


@pytest.fixture(scope="module")
def feed(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_folder: Path) -> Feed:
    """About 40 packs of unlike cost in three blocks of shards."""
    folder = tmp_path_factory.mktemp("elastic")
    texts = [f"a photo of {'the ' * (i % 11)}{COLOURS[i % 5]} square" for i in range(120)]
    samples = [TinySample(text, tiny_picture(COLOURS[i % 5])) for i, text in enumerate(texts)]
    shards = write_shards(folder / "shards", samples, samples_per_shard=20)
    tokens = TokensConfig(tokenizer=tiny_tokenizer_folder, image=FixedConfig(size=8, tokens_per_side=2))
    recipe = {"capacity": 64, "block_shards": 2, "num_workers": 1}
    pack(PackRecipe(shards=[shards], tokens=tokens, out=folder / "plan", **recipe))
    opened = open_feed(folder / "plan")
    assert len(opened.plan.blocks) == 4
    assert len(set(opened.plan.costs.tolist())) > 5
    return opened


@pytest.fixture(scope="module")
def blind(feed: Feed) -> Feed:
    """The same, its pictures not decoded: for tests that only look at which documents come."""
    rows = np.zeros((1, 1, 1), np.float32)

    def unseen(image: Image) -> Prepared:
        return Prepared(rows, (1, image.height, image.width))

    return Feed(feed.plan, feed.tokens, Preparation(unseen, (1, 1), is_raw=False), feed.indexes)


def load(feed: Feed, steps: range, world: int, num_workers: int, packs_per_batch: int = 1) -> Iterator[list[Batch]]:
    """Of each step, the micro-batches of all ranks, turn by turn."""
    settings = {"packs_per_step": PER_STEP, "seed": 5, "packs_per_batch": packs_per_batch, "num_workers": num_workers}
    ranks = [iterate_batches(feed, steps, mesh=Mesh(rank, world), **settings) for rank in range(world)]
    for row in zip(*ranks, strict=True):
        assert len({step for step, _ in row}) == 1
        assert len({len(batches) for _, batches in row}) == 1, "ranks would wait for one another"
        yield [batch for turn in zip(*(batches for _, batches in row), strict=True) for batch in turn]


def contents(batch: Batch) -> tuple:
    return batch.uids, batch.keys, *(getattr(batch, name).numpy().tobytes() for name in TENSORS)


@pytest.fixture(scope="module")
def alone(feed: Feed) -> list[list[tuple]]:
    return [[contents(batch) for batch in batches] for batches in load(feed, range(3), 1, 0)]


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("num_workers", WORKERS)
def test_every_batch_is_the_same_for_every_number_of_ranks_and_workers(feed, alone, world, num_workers):
    found = [[contents(batch) for batch in batches] for batches in load(feed, range(3), world, num_workers)]
    assert [sorted(step) for step in found] == [sorted(step) for step in alone]
    if world == 1:
        assert found == alone, "in the same order too"


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("packs_per_batch", [1, 2, 3])
def test_workers_keep_the_order_of_each_rank(feed, world, packs_per_batch):
    orders = [
        [contents(batch) for batches in load(feed, range(2), world, workers, packs_per_batch) for batch in batches]
        for workers in WORKERS
    ]
    assert all(order == orders[0] for order in orders)


def uids_of(feed: Feed, steps: range, world: int, num_workers: int) -> list[list[str]]:
    """The documents of each step, sorted: ranks train on them at one time."""
    rows = load(feed, steps, world, num_workers)
    return [sorted(uid for batch in batches for uid in batch.uids) for batches in rows]


NUM_STEPS = 8


@pytest.fixture(scope="module")
def uninterrupted(blind: Feed) -> list[list[str]]:
    return uids_of(blind, range(NUM_STEPS), 1, 0)


@given(
    stops=st.lists(st.integers(0, NUM_STEPS), max_size=3).map(sorted),
    worlds=st.lists(st.sampled_from(WORLDS), min_size=4, max_size=4),
    workers=st.lists(st.sampled_from(WORKERS), min_size=4, max_size=4),
)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_run_goes_on_where_it_stopped(blind, uninterrupted, stops, worlds, workers):
    """Twice and three times too, with other numbers of ranks and workers each time."""
    bounds = [0, *stops, NUM_STEPS]
    parts = zip(bounds, bounds[1:], worlds, workers, strict=False)
    found = [row for start, end, world, number in parts for row in uids_of(blind, range(start, end), world, number)]
    assert found == uninterrupted


def test_a_run_goes_on_at_the_end_of_an_epoch(blind, uninterrupted):
    """Epochs end within a step here: no document is lost or doubled at the seam."""
    num_packs = blind.num_packs
    assert num_packs % PER_STEP, "a seam between steps would show less"
    for stop in (num_packs // PER_STEP, num_packs // PER_STEP + 1):
        found = uids_of(blind, range(stop), 2, 1) + uids_of(blind, range(stop, NUM_STEPS), 3, 2)
        assert found == uninterrupted
    assert {uid for step in uninterrupted[: num_packs // PER_STEP + 1] for uid in step} == {
        reference.uid for number in range(num_packs) for reference in blind.plan.documents(number)
    }
