"""The loss on held-out packs: by hand, over ranks, and without a trace in the run."""

import json
import os
from pathlib import Path

import pytest
import torch
from torch.distributed.tensor import DTensor

from forked_ranks import CONTEXT, DEADLINE_SECONDS, places
from rebus.batches.feed import build_batch, open_feed
from rebus.config import load_recipe
from rebus.errors import DataError, StrangerError
from rebus.mesh import join_mesh, leave_mesh
from rebus.model.families import VisionLanguageModel, build
from rebus.packs.config import PackRecipe
from rebus.packs.run import run as pack
from rebus.pictures.config import FixedConfig
from rebus.tokens.config import TokensConfig
from rebus.training.config import TrainRecipe
from rebus.training.heldout import heldout_loss, open_heldout
from rebus.training.parallel import distribute
from rebus.training.parts import freeze_all_but


@pytest.fixture
def model(tiny_way) -> VisionLanguageModel:
    recipe = load_recipe(TrainRecipe, tiny_way.recipe("unused"))
    assert recipe.model is not None
    config = recipe.model.model_copy(update={"lora": recipe.lora.model_copy(update={"dropout": 0.5})})
    return build(config, open_feed(tiny_way.plan).plan.tokens.image).train()


def by_hand(model: VisionLanguageModel, feed, packs: range) -> float:
    """Document by document, from logits."""
    total, count = 0.0, 0
    model.eval()
    for number in packs:
        batch = build_batch(feed, (number,)).to("cpu")
        with torch.no_grad():
            states = model.hidden(batch.ids, batch.positions, batch.bounds, batch.pixels, batch.slots, batch.grids)
            chosen = model.head(states).log_softmax(-1)
        for place, label in enumerate(batch.labels.tolist()):
            if label >= 0:
                total, count = total - float(chosen[place, label]), count + 1
    model.train()
    return total / count


@pytest.mark.parametrize(("num_packs", "packs_per_batch"), [(None, 1), (3, 2), (2, 7), (10_000, 3)])
def test_it_is_the_mean_over_supervised_tokens(tiny_way, model, num_packs: int | None, packs_per_batch: int):
    feed = open_feed(tiny_way.plan)
    found = heldout_loss(model, feed, num_packs=num_packs, packs_per_batch=packs_per_batch)
    assert found == pytest.approx(by_hand(model, feed, range(min(num_packs or 10**6, feed.num_packs))), abs=1e-5)


def test_it_leaves_no_trace(tiny_way, model):
    feed = open_feed(tiny_way.plan)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    modes = [module.training for module in model.modules()]
    first = heldout_loss(model, feed, num_packs=2)
    assert torch.equal(torch.rand(3), expected)
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert heldout_loss(model, feed, num_packs=2) == first, "dropout is off"


def test_a_plan_of_another_image_rule_is_a_stranger(tiny_way, tmp_path: Path):
    tokens = TokensConfig(tokenizer=tiny_way.language, image=FixedConfig(size=32, tokens_per_side=1))
    pack(PackRecipe(shards=[tmp_path / "shards"], tokens=tokens, capacity=96, out=tmp_path / "other"))
    with pytest.raises(StrangerError, match="tokens_per_side: expected 2, found 1"):
        open_heldout(tmp_path / "other", open_feed(tiny_way.plan))
    assert open_heldout(tiny_way.plan, open_feed(tiny_way.plan)).num_packs > 0


def test_packs_without_a_supervised_token_are_an_error(tiny_way, model, monkeypatch: pytest.MonkeyPatch):
    from rebus.training import heldout

    def nothing(feed, packs):
        batch = build_batch(feed, packs)
        return type(batch)(**{**vars(batch), "labels": torch.full_like(batch.labels, -100)})

    monkeypatch.setattr(heldout, "build_batch", nothing)
    with pytest.raises(DataError, match="no held-out token is supervised"):
        heldout_loss(model, open_feed(tiny_way.plan), num_packs=1)


def as_rank(recipe_path: Path, place: dict[str, str], out: Path) -> None:
    """What one process finds, sharded as the run would be."""
    os.environ.update(place)
    torch.set_num_threads(1)
    recipe = load_recipe(TrainRecipe, recipe_path)
    mesh = join_mesh()
    feed = open_feed(recipe.plan)
    assert recipe.model is not None
    model = build(recipe.model.model_copy(update={"lora": recipe.lora}), feed.plan.tokens.image)
    freeze_all_but(model, recipe.trains)
    distribute(model, recipe, mesh)
    losses = [heldout_loss(model.train(), feed, num_packs=number, mesh=mesh) for number in (3, 1)]
    assert all(isinstance(parameter, DTensor) for parameter in model.language.parameters()) == (mesh.world > 1)
    (out / f"{mesh.world}-{mesh.rank}").write_text(json.dumps(losses))
    leave_mesh(mesh)


def test_two_sharded_ranks_find_what_one_finds(tiny_way, tmp_path: Path):
    """Three packs do not divide by two, and of one pack a rank has none: it keeps step all the same."""
    recipe = tiny_way.recipe("pair")
    ranks = [CONTEXT.Process(target=as_rank, args=(recipe, at, tmp_path)) for at in places(1) + places(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(DEADLINE_SECONDS)
    assert [rank.exitcode for rank in ranks] == [0, 0, 0]
    alone, first, second = (json.loads((tmp_path / name).read_text()) for name in ("1-0", "2-0", "2-1"))
    assert first == second
    assert first == pytest.approx(alone, abs=1e-5)
    assert alone[0] != pytest.approx(alone[1], abs=1e-5)
