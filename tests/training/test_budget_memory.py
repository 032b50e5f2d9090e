"""Bytes foretold against bytes measured: what lies between steps exactly, what the backward pass waits for within 15%.

Measured is every storage that an operation of the forward pass made and that is alive when it ends.
"""

import gc
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rebus.batches.batch import Batch
from rebus.mesh import Mesh, join_mesh, leave_mesh
from rebus.model.families import VisionLanguageModel
from rebus.training.activations import activations_of
from rebus.training.config import TrainRecipe
from rebus.training.flops import flops_of
from rebus.training.parallel import recompute
from rebus.training.parts import freeze_all_but
from tiny_families import MAKERS, arguments, batch_of, documents_of

STAGES: dict[str, Any] = {
    "align": {"connector": {"lr": 1}},
    "pretrain": {"connector": {"lr": 1}, "language": {"lr": 1}},
    "all": {"tower": {"lr": 1}, "connector": {"lr": 1}, "language": {"lr": 1}},
}


def recipe_of(stage: str, **settings: Any) -> TrainRecipe:
    body = {"out": "out", "plan": "plan", "init": "init", "steps": 1, "trains": STAGES[stage], **settings}
    return TrainRecipe.model_validate(body)


class Made(TorchDispatchMode):
    """Which storages the operations inside made, and which of them are still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, positional: Any = (), named: Any = None) -> Any:
        results = function(*positional, **(named or {}))
        for tensor in tree_leaves(results):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.storages[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return results

    def alive(self, apart: set[int]) -> int:
        gc.collect()
        return sum(n for at, (storage, n) in self.storages.items() if not storage.expired() and at not in apart)


@pytest.fixture(scope="module", params=list(MAKERS))
def made(request: pytest.FixtureRequest, tiny_tokenizer_folder: Path) -> tuple[VisionLanguageModel, Batch]:
    family = MAKERS[request.param]()
    return family.ours, batch_of(documents_of(family, tiny_tokenizer_folder), family.image)


@pytest.fixture
def mesh() -> Iterator[Mesh]:
    joined = join_mesh(always=True)
    yield joined
    leave_mesh(joined)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("activations", ["off", "full", "selective"])
@pytest.mark.parametrize("stage", list(STAGES))
def test_activations_are_what_the_backward_pass_waits_for(
    made: tuple[VisionLanguageModel, Batch], stage: str, activations: str, precision: str
):
    model, batch = deepcopy(made[0]), made[1]
    recipe = recipe_of(stage, activations=activations, precision=precision)
    freeze_all_but(model, recipe.trains)
    flops = flops_of(model)
    model.to(torch.bfloat16 if precision == "bf16" else torch.float32).train()
    recompute(model, activations)
    with Made() as storages:
        loss, _ = model(**arguments(batch))
        own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers(), loss)}
        measured = storages.alive(own)
    foretold, _ = activations_of(model, recipe, flops.work(batch))
    assert foretold == pytest.approx(measured, rel=0.15)
