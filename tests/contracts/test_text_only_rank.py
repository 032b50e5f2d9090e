"""Contract 11 with real processes: a run whose rank 1 never meets a picture does not wait forever for its gradients,
and trains as one process does."""

from pathlib import Path

import pytest

from forked_ranks import Ranks
from rebus.batches.feed import open_feed
from rebus.batches.loader import iterate_batches
from rebus.mesh import Mesh
from rebus.packs.config import PackRecipe
from rebus.packs.run import run as pack
from rebus.pictures.config import FixedConfig
from rebus.tokens.config import TokensConfig
from rebus.training.metrics import read_rows
from tiny_samples import TinySample, tiny_picture, write_shards
from tiny_way import TinyWay, talk

STEPS = 6
PLACES = {"steps": STEPS, "packs_per_step": 2, "save_every": 100, "trackers": [], "lora": None, "stall_seconds": 60.0}
TRAINS = {
    "tower_learns": {"tower": {"lr": 1e-3}, "connector": {"lr": 1e-2}, "language": {"lr": 1e-3}},
    "tower_is_frozen": {"connector": {"lr": 1e-2}, "language": {"lr": 1e-3}},
    "connector_alone": {"connector": {"lr": 1e-2}},
}


@pytest.fixture(scope="module")
def way(tmp_path_factory: pytest.TempPathFactory, speaking_folder: Path) -> TinyWay:
    """One pack with pictures among text: it is the dearest, which rank 0 gets."""
    folder = tmp_path_factory.mktemp("text_only")
    texts = [talk(f"a photo of {'the ' * 88}{number}") for number in range(3)]  # too long for a picture beside them
    pictures = [TinySample(f"a {colour} square", tiny_picture(colour)) for colour in ("green", "black") * 2]
    tokens = TokensConfig(tokenizer=speaking_folder, image=FixedConfig(size=32, tokens_per_side=2))
    shards = write_shards(folder / "shards", texts + pictures)
    settings = {"capacity": 96, "cost": {"per_patch": 100.0}, "num_workers": 1}
    pack(PackRecipe(shards=[shards], tokens=tokens, out=folder / "plan", **settings))
    return TinyWay(folder, folder / "plan", speaking_folder)


def pictures_of(way: TinyWay, rank: int) -> list[int]:
    """How many pictures a rank of two meets at each step."""
    steps = iterate_batches(open_feed(way.plan), range(STEPS), packs_per_step=2, seed=0, mesh=Mesh(rank, 2))
    return [sum(batch.num_images for batch in batches) for _, batches in steps]


@pytest.fixture(scope="module")
def runs(way: TinyWay) -> Path:
    for world in (1, 2):
        recipes = [way.recipe(f"{name}_{world}", **PLACES, trains=trains) for name, trains in TRAINS.items()]
        ranks = Ranks(recipes, world, way.folder / f"{world}.log")
        assert ranks.wait() == [0] * world, ranks.said
    return way.folder


def test_rank_1_meets_only_text(way: TinyWay):
    assert pictures_of(way, 1) == [0] * STEPS
    assert 0 < sum(count > 0 for count in pictures_of(way, 0)) < STEPS


@pytest.mark.parametrize("name", TRAINS)
def test_it_trains_as_one_process_does(runs: Path, name: str):
    expected, found = (read_rows(runs / f"{name}_{world}" / "metrics.jsonl") for world in (1, 2))
    assert [row.num_images for row in found] == [row.num_images for row in expected]
    assert [row.loss for row in found] == pytest.approx([row.loss for row in expected], abs=1e-5)
    assert len({round(row.loss, 3) for row in found}) > 1
