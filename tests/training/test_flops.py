"""FLOPs against torch's own counter over real forward and backward passes of tiny models, for what learns where.

The counter sees attention as it is computed: with the reference all pairs of the pack, so `pairs` are set to those;
causality is checked by itself. It counts no backward product whose result nobody needs, and neither do we.
"""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from rebus.batches.batch import Batch
from rebus.model.adapters import add_lora
from rebus.model.attention import REFERENCE
from rebus.model.config import LoraConfig
from rebus.model.families import VisionLanguageModel
from rebus.model.native import NativeTower
from rebus.model.native_layout import native_layout
from rebus.training.config import Part, TrainsConfig
from rebus.training.flops import Work, flops_of, work_of
from rebus.training.parts import freeze_all_but
from tiny_families import MAKERS, arguments, batch_of, documents_of
from tiny_models import language_folder, model, model_config

__all__ = ["language_folder", "model", "model_config"]

FREEZING: dict[str, dict[str, int | None]] = {
    "align": {"connector": None},
    "pretrain": {"connector": None, "language": None},
    "all": {"tower": None, "connector": None, "language": None},
    "language": {"language": None},
    "last language layer": {"language": 1},
    "last layers and connector": {"connector": None, "language": 1},
    "last tower layer": {"tower": 1},
    "embeddings": {"embeddings": None},
    "adapters": {"lora": None},
    "adapters and connector": {"lora": None, "connector": None},
}


def addmm_in_place(out: Any, left: Any, right: Any, *rest: Any, out_shape: Any = None, **options: Any) -> int:
    """The loss adds up its weight's gradient in place, which the counter does not know."""
    return 2 * left[0] * left[1] * right[1]


COUNTER = {torch.ops.aten.addmm_: addmm_in_place}


@pytest.fixture(scope="module", params=list(MAKERS))
def made(request: pytest.FixtureRequest, tiny_tokenizer_folder: Path) -> tuple[VisionLanguageModel, Batch]:
    family = MAKERS[request.param]()
    return family.ours, batch_of(documents_of(family, tiny_tokenizer_folder), family.image)


def counted(model: VisionLanguageModel, batch: Batch) -> int:
    """FLOPs of forward and backward that torch's counter sees, attention as plain products."""
    model.language.set_attn_implementation(REFERENCE)
    if isinstance(model.tower, NativeTower):
        model.tower.attention = REFERENCE
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=COUNTER) as counter:
        loss, _ = model.loss(**arguments(batch))
        loss.backward()
    return counter.get_total_flops()


def dense(work: Work) -> Work:
    """What the reference computes: every token of the pack against every other, every patch too."""
    pairs = work.tokens**2
    return replace(work, pairs=pairs, frame_pairs=work.encoded**2, window_pairs=work.encoded**2)


def rotary(model: VisionLanguageModel, batch: Batch) -> int:
    """transformers makes its rotary tables by a product of positions and frequencies, once a batch."""
    settings = model.language.config
    rows = 3 if model.config.mrope_section else 1
    return 2 * rows * batch.num_tokens * (settings.hidden_size // settings.num_attention_heads // 2)


@pytest.mark.parametrize("freezing", FREEZING)
def test_flops_are_those_that_torch_counts(made: tuple[VisionLanguageModel, Batch], freezing: str):
    model, batch = frozen(made[0], freezing), made[1]
    flops = flops_of(model)
    assert flops.model(dense(flops.work(batch))) + rotary(model, batch) == counted(model, batch)


def frozen(original: VisionLanguageModel, freezing: str) -> VisionLanguageModel:
    """A copy of which only that learns."""
    model = deepcopy(original)
    if "lora" in FREEZING[freezing]:
        targets = ("q_proj", "v_proj", "up_proj", "down_proj")
        add_lora(model, LoraConfig(rank=3, targets=targets))
    trains: dict[Part, TrainsConfig] = {
        part: TrainsConfig(lr=1.0, last_layers=last)  # type: ignore[misc]
        for part, last in FREEZING[freezing].items()
    }
    freeze_all_but(model, trains)
    return model.train()


def test_what_is_computed_again_is_no_model_flop(made: tuple[VisionLanguageModel, Batch]):
    """torch stops a block's second run at the last tensor that is needed, so before its last product: that one apart,
    the counter sees what `recomputed` says."""
    model, batch = frozen(made[0], "pretrain"), made[1]
    plain, full = flops_of(model), flops_of(model, "full")
    before = counted(model, batch)
    model.checkpoint_activations()
    work = dense(plain.work(batch))
    last = sum(2 * block.mlp.down_proj.weight.numel() * batch.num_tokens for block in model.language.model.layers)
    assert full.of(batch) == plain.of(batch)
    assert plain.recomputed(work) == 0
    assert counted(model, batch) - before == full.recomputed(work) - last
    again = [one for layer in model.language.model.layers for one in (layer.self_attn, layer.mlp)]
    kept = sum(
        2 * getattr(one, name).weight.numel()
        for one in again
        for name in ("k_proj", "o_proj", "up_proj")
        if hasattr(one, name)
    )
    assert flops_of(model, "selective").again == {"tokens": kept}


def test_causal_attention_is_counted_inside_documents(made: tuple[VisionLanguageModel, Batch]):
    model, batch = made
    lengths = batch.bounds.diff().tolist()
    work = flops_of(model).work(batch)
    assert work.pairs == sum(seen + 1 for length in lengths for seen in range(length))
    assert (work.tokens, work.supervised) == (batch.num_tokens, batch.num_supervised)
    rates = flops_of(model).forward
    assert rates["pairs"] == 4 * 64 * 2  # two products of 64 channels in each of two layers


def test_windows_and_frames_are_counted_where_they_are_laid():
    """Against the layout that the tower computes by, for grids with whole and cut windows."""
    grids = torch.tensor([[1, 4, 6], [3, 10, 14], [1, 2, 2], [2, 8, 8]])
    pixels = torch.zeros(int(grids.prod(1).sum()), 5)
    labels, bounds = torch.full((7,), -100), torch.tensor([0, 7])
    batch = Batch(labels, labels, labels, bounds, pixels, torch.zeros(4, 2), grids, (), ("a",))
    layout = native_layout(grids, 2, 3, "cpu")
    work = work_of(batch, merge_size=2, window=3)
    assert layout.windows is not None
    assert work.frame_pairs == layout.frames.bounds.diff().double().square().sum()
    assert work.window_pairs == layout.windows.bounds.diff().double().square().sum()
    assert (work.encoded, work.supervised) == (len(pixels), 0)


def test_features_made_before_cost_the_tower_nothing(model: VisionLanguageModel):
    """A convolutional tower is counted by running it without memory; cached features pass the connector alone."""
    labels, bounds, grids = torch.full((9,), -100), torch.tensor([0, 9]), torch.tensor([[1, 32, 32], [1, 32, 32]])
    slots = torch.tensor([[0, 4], [4, 4]])
    cached = Batch(labels, labels, labels, bounds, torch.zeros(2, 16, 16), slots, grids, (), ("a",))
    flops = flops_of(model)
    assert flops.work(cached).encoded == 0
    assert flops.work(cached).connected == 2
    seen = flops.of(replace(cached, pixels=torch.zeros(2, 3, 32, 32)))
    assert seen - flops.of(cached) == 2 * 2 * 16 * 16 * 3 * 8 * 8  # pictures, FLOPs, patches, channels, a patch
    model.tower.requires_grad_(True)
    assert flops_of(model).backward["encoded"] == 2 * 16 * 16 * 3 * 8 * 8  # pixels want no gradient
