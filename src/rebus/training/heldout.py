"""Loss on packs that are not trained on, in the loop: the same packs each time, in the same order."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from rebus.batches.batch import Batch
from rebus.batches.feed import Feed, build_batch, open_feed
from rebus.errors import DataError
from rebus.mesh import Mesh, sum_over_ranks
from rebus.model.families import VisionLanguageModel
from rebus.training.step import loss_of


def open_heldout(plan: Path, training: Feed) -> Feed:
    """The held-out plan, read by the training plan's rules.

    Raises: StrangerError where its tokenizer, template or image rule are others, with what differs.
    """
    return open_feed(plan, tokens=training.plan.tokens)


def heldout_loss(
    model: VisionLanguageModel,
    feed: Feed,
    *,
    num_packs: int | None = None,
    packs_per_batch: int = 1,
    mesh: Mesh = Mesh(),  # noqa: B008 - frozen
    device: str = "cpu",
) -> float:
    """Mean loss in nats over the supervised tokens of the plan's first `num_packs` packs (None: all), on every rank.

    Each rank walks as many micro-batches as any other, since FSDP gathers weights in each; one that has none left
    walks an earlier one again and counts it as nothing. Mode and random numbers are as before afterwards.
    Raises: DataError where no token is supervised.
    """
    sums = torch.zeros(2, dtype=torch.float64, device=device)  # of losses, of supervised tokens
    with _looking_only(model, device):
        for batch, weight in _share(feed, num_packs, packs_per_batch, mesh):
            loss, num_supervised = loss_of(model, batch.to(device))
            sums += weight * torch.stack([loss.double(), loss.new_tensor(num_supervised, dtype=torch.float64)])
    loss_sum, count = sum_over_ranks(sums, mesh).tolist()
    if not count:
        raise DataError(f"{feed.plan.folder}: no held-out token is supervised. `rebus show` shows the mask.")
    return loss_sum / count


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
