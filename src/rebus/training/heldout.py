"""Loss on packs that are not trained on, in the loop: the same packs each time, in the same order."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from rebus.batches.batch import Batch
from rebus.batches.feed import Feed, build_batch, open_feed
from rebus.errors import DataError
from rebus.mesh import Mesh, sum_over_ranks
from rebus.model.families import VisionLanguageModel


def open_heldout(plan: Path, training: Feed) -> Feed:
    """The held-out plan, read by the training plan's rules.

    Raises: StrangerError where its tokenizer, template or image rule are others, with what differs.
    """
    return replace(open_feed(plan, tokens=training.plan.tokens), cache=training.cache)


def heldout_loss(
    model: VisionLanguageModel,
    feed: Feed,
    *,
    num_packs: int | None = None,
    packs_per_batch: int = 1,
    mesh: Mesh = Mesh(),  # noqa: B008 - frozen
    device: str = "cpu",
    after_batch: Callable[[], None] = lambda: None,
) -> float:
    """Mean loss in nats over the supervised tokens of the plan's first `num_packs` packs (None: all), on every rank.

    Each rank walks as many micro-batches as any other, since FSDP gathers weights in each; one that has none left
    walks an earlier one again and counts it as nothing. Mode and random numbers are as before afterwards.
    after_batch: called after each micro-batch. Raises: DataError where no token is supervised.
    """
    loss_sum, count = torch.zeros((), dtype=torch.float64, device=device), 0
    with _looking_only(model, device):
        for batch, weight in _share(feed, num_packs, packs_per_batch, mesh):
            loss, num_supervised = model(batch.to(device))
            loss_sum += weight * loss
            count += weight * num_supervised
            after_batch()
    sums = torch.stack([loss_sum, torch.tensor(count, dtype=torch.float64, device=device)])
    total, num_all = sum_over_ranks(sums, mesh).tolist()
    if not num_all:
        raise DataError(f"{feed.plan.folder}: no held-out token is supervised. `rebus show` shows the mask.")
    return total / num_all


def _share(feed: Feed, num_packs: int | None, packs_per_batch: int, mesh: Mesh) -> Iterator[tuple[Batch, int]]:
    """This rank's micro-batches, each with 1 or, where it only keeps step with the others, 0."""
    packs = range(min(num_packs or feed.num_packs, feed.num_packs))
    groups = [tuple(packs[start : start + packs_per_batch]) for start in range(0, len(packs), packs_per_batch)]
    for first in range(0, len(groups), mesh.world):
        place = first + mesh.rank
        yield build_batch(feed, groups[place if place < len(groups) else 0]), int(place < len(groups))


@contextmanager
def _looking_only(model: nn.Module, device: str) -> Iterator[None]:
    """Eval mode without gradients. What FSDP gathered is given up again: only a backward pass would do that, and an
    update before one would leave the next forward pass with old weights."""
    was_training = model.training
    gpus = [torch.cuda.current_device()] if torch.device(device).type == "cuda" else []
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=gpus):
            yield
    finally:
        model.train(was_training)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
