"""`rebus train` against a loop that anybody would write with transformers and torch alone: their model, one document at
a time without packing, gradients summed over a step's documents, their AdamW, clipping and schedule. fp32, 50 steps,
the same documents in the same order; nothing of ours but the plan that is read."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
import transformers
import yaml
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from rebus.batches.collate import Document
from rebus.batches.feed import Feed, load_document, open_feed
from rebus.batches.order import step_packs
from rebus.checkpoints.load import load_model
from rebus.config import load_recipe
from rebus.packs.config import PackRecipe
from rebus.packs.run import run as pack
from rebus.pictures.config import NativeConfig
from rebus.tokens.config import TokensConfig
from rebus.training.config import TrainRecipe
from rebus.training.loop import run
from rebus.training.metrics import StepRow, read_rows
from tiny_families import IMAGE_TOKEN, picture
from tiny_hub import save_family
from tiny_samples import TinySample, write_shards

NUM_STEPS, PACKS_PER_STEP, WARMUP, SEED = 50, 2, 5, 3
BETAS, EPS, CLIP = (0.9, 0.95), 1e-6, 1.0
TOLERANCE = 1e-5  # the claim is 1e-4; 3e-7 was measured

Rates = tuple[float, float]


@dataclass(frozen=True)
class Case:
    """trains: part -> learning rate and weight decay. homes: part -> how transformers' names of it begin; the first
    that fits counts."""

    family: str
    trains: dict[str, Rates]
    homes: dict[str, tuple[str, ...]]


CASES = {
    "llava": Case(
        "llava_siglip",
        {"connector": (3e-3, 0.0), "language": (1e-3, 0.1)},
        {"connector": ("model.multi_modal_projector.",), "language": ("model.language_model.", "lm_head.")},
    ),
    "qwen2_vl": Case(
        "qwen2_vl",
        {"tower": (5e-4, 0.05), "connector": (3e-3, 0.0), "language": (1e-3, 0.1)},
        {
            "connector": ("model.visual.merger.",),
            "tower": ("model.visual.",),
            "language": ("model.language_model.", "lm_head."),
        },
    ),
}


@dataclass(frozen=True)
class Way:
    """A model as transformers saved it and a plan of documents that it can read."""

    case: Case
    folder: Path
    hub: Path
    plan: Path


@pytest.fixture(params=list(CASES))
def way(request: pytest.FixtureRequest, tmp_path: Path, tiny_tokenizer_folder: Path) -> Way:
    case = CASES[request.param]
    hub = save_family(case.family, tmp_path / "hub", tiny_tokenizer_folder, chat_template=None)
    write_shards(tmp_path / "shards", samples())
    image = load_model(hub, template="plain")[0].image
    tokens = TokensConfig(tokenizer=hub, image=image, max_tokens=170)
    plan = tmp_path / "plan"
    pack(PackRecipe(shards=[tmp_path / "shards"], tokens=tokens, capacity=170, out=plan, num_workers=1))
    return Way(case, tmp_path, hub, plan)


def samples() -> list[TinySample]:
    """Captions of pictures of many shapes, 3 to 29 words; every sixth is a conversation without any."""
    rng = np.random.default_rng(0)
    words, found = ["a", "photo", "of", "the", "red", "square", "table", "on", "what", "is", "in"], []
    for number in range(48):
        width, height = rng.integers(30, 120, 2).tolist()
        text = " ".join(rng.choice(words, int(rng.integers(3, 30))))
        talk = ({"role": "user", "content": "what is it?"}, {"role": "assistant", "content": text})
        data = picture(width, height, number).data
        found.append(TinySample(messages=talk) if number % 6 == 0 else TinySample(text, data))
    return found


def ours(way: Way) -> list[StepRow]:
    """The rows that `rebus train` writes."""
    recipe = {
        "out": str(way.folder / "run"),
        "plan": str(way.plan),
        "init": str(way.hub),
        "trains": {part: {"lr": lr, "weight_decay": decay} for part, (lr, decay) in way.case.trains.items()},
        "steps": NUM_STEPS,
        "packs_per_step": PACKS_PER_STEP,
        "optimizer": {"betas": list(BETAS), "eps": EPS, "max_grad_norm": CLIP},
        "schedule": {"kind": "cosine", "warmup_steps": WARMUP},
        "seed": SEED,
        "save_every": NUM_STEPS,
        "num_threads": 1,
    }
    path = way.folder / "train.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return read_rows(run(load_recipe(TrainRecipe, path)) / "metrics.jsonl")


def theirs(way: Way) -> list[tuple[float, float]]:
    """Loss and gradient norm of every step of the plain loop."""
    model = transformers.AutoModelForImageTextToText.from_pretrained(way.hub, dtype=torch.float32).train()
    groups = parameter_groups(model, way.case)
    parameters = [parameter for group in groups for parameter in group["params"]]
    optimizer = torch.optim.AdamW(groups, betas=BETAS, eps=EPS)
    warm = LinearLR(optimizer, start_factor=1 / WARMUP, total_iters=WARMUP - 1)
    fall = CosineAnnealingLR(optimizer, NUM_STEPS - WARMUP - 1)
    schedule = SequentialLR(optimizer, [warm, fall], [WARMUP])
    feed, found = open_feed(way.plan), []
    for step in range(NUM_STEPS):
        inputs = [inputs_of(document, feed) for document in documents_of(feed, step)]
        num_supervised = sum(int((one["labels"][0, 1:] != -100).sum()) for one in inputs)
        optimizer.zero_grad()
        loss = 0.0
        for one in inputs:
            share = model(**one, use_cache=False, num_items_in_batch=num_supervised).loss
            share.backward()
            loss += share.item()
        norm = torch.nn.utils.clip_grad_norm_(parameters, CLIP).item()
        optimizer.step()
        schedule.step()
        found.append((loss, norm))
    return found


def parameter_groups(model: Any, case: Case) -> list[dict[str, Any]]:
    """Weight decay on matrices alone; what no part names stays frozen."""
    groups: dict[tuple[str, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        part = next((part for part, heads in case.homes.items() if name.startswith(heads)), None)
        parameter.requires_grad_(part is not None)
        if part is not None:
            groups.setdefault((part, parameter.ndim > 1), []).append(parameter)
    settings = case.trains
    return [
        {"params": members, "lr": settings[part][0], "weight_decay": settings[part][1] * decays}
        for (part, decays), members in groups.items()
    ]


def documents_of(feed: Feed, step: int) -> list[Document]:
    packs = step_packs(
        step,
        num_packs=feed.num_packs,
        packs_per_step=PACKS_PER_STEP,
        seed=SEED,
        blocks=feed.plan.blocks,
        costs=feed.plan.costs,
    )
    found = [load_document(feed, reference) for number in packs for reference in feed.plan.documents(number)]
    return [one for one in found if isinstance(one, Document)]


def inputs_of(document: Document, feed: Feed) -> dict[str, torch.Tensor]:
    """One document as transformers takes it: pixels by its own processor, labels not yet shifted, positions its own."""
    encoded, rule = document.encoded, feed.plan.tokens.image
    ids, is_picture = torch.from_numpy(encoded.ids.astype(np.int64)), torch.from_numpy(encoded.ids < 0)
    labels = ids.masked_fill(~torch.from_numpy(encoded.trainable), -100)
    inputs = {"input_ids": ids.masked_fill(is_picture, IMAGE_TOKEN)[None], "labels": labels[None]}
    if isinstance(rule, NativeConfig):
        inputs["mm_token_type_ids"] = is_picture.int()[None]
    pictures = [PIL.Image.open(io.BytesIO(one.data)).convert("RGB") for one in encoded.images]  # type: ignore[union-attr, arg-type]
    if not pictures:
        return inputs
    processor: Callable[..., Any] = transformers.SiglipImageProcessorPil(size={"height": 56, "width": 56})
    if isinstance(rule, NativeConfig):
        size = {"shortest_edge": rule.min_pixels, "longest_edge": rule.max_pixels}
        processor = transformers.Qwen2VLImageProcessorPil(size=size)
    return {**inputs, **processor(pictures, return_tensors="pt")}


def test_fifty_steps_equal_a_plain_loop(way: Way):
    rows, wanted = ours(way), theirs(way)
    assert [row.step for row in rows] == list(range(NUM_STEPS))
    losses, norms = (np.array(values) for values in zip(*wanted, strict=True))
    assert losses[0] - losses[-1] > 0.5, "it must learn, or equal losses say nothing of optimizer and schedule"
    assert (norms > CLIP).any(), "clipping must bite, or it is not compared"
    assert np.abs(np.array([row.loss for row in rows]) - losses).max() < TOLERANCE
    np.testing.assert_allclose([row.grad_norm for row in rows], norms, rtol=1e-4)
