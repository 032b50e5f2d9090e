"""How fast training is: tokens that are no padding, per second, against the ways that others train by.

Claims, for captions and for conversations: `rebus train` is at least 2 times as fast as (a) padded batches in a plain
loop over transformers' model, and 1.5 times as (b) transformers' Trainer with length grouping; its loop, loader and
logging cost at most 5% over bare forward and backward passes of the same batches.

    python benchmarks/training.py [--rounds 3] [--capacity 2048] [--distributions captions conversations] [--json FILE]
                                  [--check] [--quick]

The model is of SmolLM2-135M's shape with random weights, float32, all of it trained by AdamW (fused), clipped. Pictures
are features that a frozen tower made before (144 x 1152 a picture), through a connector into 144 tokens, so
that no tower blurs what is compared. Captions: 144 image tokens and about 35 of text, of which text alone is learnt.
Conversations: 70 to 1,600 tokens, every other with a picture; answers alone are learnt.

A round is one optimizer step of each contestant, one after another in one process, so that whatever else the machine
does hits all alike; the median of rounds counts, a whole one before them does not, and memory once got is kept (glibc's
settings below): on a virtual machine new memory can cost more than a step. `rebus train` itself runs, its step one pack
of --capacity tokens; after each of its steps the others take theirs. (a) trains on the same documents in one batch
padded to the longest; beside it stands (a) with a sampler that no plain loop has, which fills batches to --capacity.
(b) takes as many documents a step as a pack holds in the mean, chosen by its own sampler from all of the plan.
Bigger batches pad more: how much, of the same documents shuffled, is counted beside (LLaVA's scripts take 32 captions
or 16 conversations a device).
The ways in which our own step is made worse, one at a time, say where the gain comes from.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from machine import machine
from rebus.batches.batch import IGNORE, Batch
from rebus.batches.feed import Preparation, build_batch, open_feed
from rebus.log import show_table
from rebus.model import families
from rebus.model.attention import PACKED, REFERENCE
from rebus.pictures.prepare import Prepared
from rebus.training import loop
from rebus.training.config import TrainRecipe
from rebus.training.metrics import StepRow
from rebus.training.record import Record
from rebus.training.resume import Progress
from rebus.training.step import StepResult
from rebus.training.timing import Stopwatch
from training_data import SIDE, SMOLLM2, TINY, WRITERS, Shape, make_recipe, make_weights
from training_rivals import GroupedTrainer, PlainLoop, Row, rows_of, within

OURS, PLAIN, TRAINER = "rebus train", "(a) padded, plain loop", "(b) Trainer, grouped by length"
CAPPED = "(a) in batches of a pack's size"
BARE = "bare forward and backward"
PADDED, FULL, DENSE = "ours, padded batches", "ours, full logits", "ours, attention by a dense mask"
LEAST = {PLAIN: 2.0, TRAINER: 1.5}
MOST_OVERHEAD = 0.05
KEEPING = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(2**34), "MALLOC_TRIM_THRESHOLD_": str(2**36)}


@dataclass(frozen=True)
class Taken:
    """One step of one contestant. tokens: without padding. places: with it."""

    seconds: float
    tokens: int
    places: int


@dataclass(frozen=True)
class Step:
    """A step that `rebus train` took: what its train_step was called with."""

    batches: Sequence[Batch]
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    def again(self, batches: Sequence[Batch]) -> StepResult:
        """The same step on other batches of the same documents, by a clock of its own."""
        return real_step(self.arguments[0], batches, *self.arguments[2:], **self.options | {"watch": Stopwatch()})


real_step, real_add = loop.train_step, Record.add


class Enough(Exception):
    """Ends `rebus train` where the last round is over: what it would save is not measured."""


class Rounds:
    """Runs `rebus train` and, after each of its steps, every other contestant on the same documents."""

    def __init__(self, recipe: TrainRecipe, shape: Shape, num_rounds: int, capacity: int, folder: Path) -> None:
        self.recipe, self.num_rounds, self.capacity = recipe, num_rounds, capacity
        self.image_token = shape.text["vocab_size"] - 1
        rows, per_batch = self._all_rows(shape)
        self.lengths = [len(row["input_ids"]) for row in rows]
        self.plain = PlainLoop(shape)
        self.trainer = GroupedTrainer(shape, rows, per_batch, 1 + num_rounds, folder / "trainer")
        self.per_batch = per_batch
        self.taken: list[dict[str, Taken]] = []
        self.rows: list[StepRow] = []

    def _all_rows(self, shape: Shape) -> tuple[list[Row], int]:
        """Every document of the plan, pictures all zeros, and how many a pack holds in the mean."""
        picture = np.zeros((1, SIDE**2, shape.feature_width), np.float32)
        blank = Preparation(lambda one: Prepared(picture, (1, one.height, one.width)), picture.shape[1:], is_raw=False)  # type: ignore[union-attr]
        feed = open_feed(self.recipe.plan, preparation=blank)
        packs = [build_batch(feed, (number,)) for number in range(feed.num_packs)]
        rows = [row for batch in packs for row in rows_of(batch, self.image_token)]
        return rows, max(1, round(len(rows) / feed.num_packs))

    def run(self) -> None:
        def add(record: Record, row: StepRow, progress: Progress) -> None:
            real_add(record, row, progress)
            self._after(row)

        with patch.object(loop, "train_step", self._step), patch.object(Record, "add", add):
            self._started = time.perf_counter()
            try:
                loop.run(self.recipe)
            except Enough:
                self.trainer.end()

    def _step(self, *arguments: Any, **options: Any) -> StepResult:
        self._last = Step(arguments[1], arguments, options)
        return real_step(*arguments, **options)

    def _after(self, row: StepRow) -> None:
        """Behind every step of `rebus train`: its time ends here, the others take turns, its time begins again."""
        ours = Taken(time.perf_counter() - self._started, row.num_tokens, row.num_tokens)
        self.rows.append(row)
        self.taken.append({OURS: ours} | self._others())
        if len(self.taken) == 1 + self.num_rounds:
            self.rows, self.taken = self.rows[1:], self.taken[1:]
            raise Enough
        self._started = time.perf_counter()

    def _others(self) -> dict[str, Taken]:
        last = self._last
        rows = [row for batch in last.batches for row in rows_of(batch, self.image_token)]
        lengths = [len(row["input_ids"]) for row in rows]
        tokens, places, whole = sum(lengths), len(lengths) * max(lengths), range(len(lengths))
        capped = within(lengths, self.capacity)
        found = {BARE: Taken(timed(lambda: bare(last)), tokens, tokens)}
        found[PLAIN] = Taken(timed(lambda: self.plain.step(rows, [whole])), tokens, places)
        sums = sum(len(batch) * max(lengths[one] for one in batch) for batch in capped)
        found[CAPPED] = Taken(timed(lambda: self.plain.step(rows, capped)), tokens, sums)
        started = time.perf_counter()
        theirs = [len(row["input_ids"]) for row in self.trainer.step()]
        found[TRAINER] = Taken(time.perf_counter() - started, sum(theirs), len(theirs) * max(theirs))
        wide = [pad(batch, whole) for batch in last.batches]
        found[PADDED] = Taken(timed(lambda: last.again(wide)), tokens, places)
        with patch.object(families, "token_loss", full_loss):
            found[FULL] = Taken(timed(lambda: last.again(last.batches)), tokens, tokens)
        with dense_attention(last.arguments[0]):
            found[DENSE] = Taken(timed(lambda: last.again(last.batches)), tokens, tokens)
        return found


def keep_memory() -> None:
    """Starts this program again where glibc would give memory back to the system between two tensors."""
    if any(name not in os.environ for name in KEEPING):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEPING})


def timed(act: Callable[[], Any]) -> float:
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def bare(step: Step) -> None:
    """Forward and backward of the batches as they lie in memory; no update."""
    model, optimizers, options = step.arguments[0], step.arguments[2], step.options
    for batch in step.batches:
        loss, _ = model(batch)
        (loss / options["num_supervised"]).backward()
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)


def full_loss(
    hidden: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> tuple[torch.Tensor, int]:
    logits = torch.nn.functional.linear(hidden, weight, bias)
    loss = torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum")
    return loss, int((labels != IGNORE).sum())


@contextmanager
def dense_attention(model: Any) -> Iterator[None]:
    model.language.set_attn_implementation(REFERENCE)
    yield
    model.language.set_attn_implementation(PACKED)


def pad(batch: Batch, documents: Sequence[int]) -> Batch:
    """Some documents of a pack, each padded to the longest: padding is computed, and nothing is learnt from it."""
    bounds = batch.bounds.tolist()
    longest = max(bounds[one + 1] - bounds[one] for one in documents)
    take, slots, kept = [], [], []
    for place, one in enumerate(documents):
        start, end = bounds[one], bounds[one + 1]
        take.append(torch.arange(start, start + longest).clamp_max(end - 1))
        inside = ((batch.slots[:, 0] >= start) & (batch.slots[:, 0] < end)).nonzero().squeeze(1)
        kept.append(inside)
        slots.append(batch.slots[inside] + torch.tensor([place * longest - start, 0]))
    where, pictures = torch.cat(take), torch.cat(kept)
    positions = torch.arange(longest).repeat(len(documents))
    is_padding = positions >= torch.tensor([bounds[one + 1] - bounds[one] for one in documents]).repeat_interleave(
        longest
    )
    return replace(
        batch,
        ids=batch.ids[where].masked_fill(is_padding, 0),
        labels=batch.labels[where].masked_fill(is_padding, IGNORE),
        positions=positions,
        bounds=torch.arange(0, len(where) + 1, longest, dtype=torch.int32),
        pixels=batch.pixels[pictures],
        slots=torch.cat(slots),
        grids=batch.grids[pictures],
        uids=tuple(batch.uids[one] for one in documents),
        keys=tuple(batch.keys[one] for one in documents),
    )


def summary(rounds: Rounds, distribution: str) -> dict[str, Any]:
    """Medians over rounds. times: how much faster ours is than each, in the same round; of (b), whose documents are
    others, by the medians. overhead: all of a step that is neither a pass nor the update, by the passes of that very
    step; over_bare: by other passes over the same batch, which tells as much of the machine's moods."""
    speeds = {name: [one[name].tokens / one[name].seconds for one in rounds.taken] for name in rounds.taken[0]}
    ours = statistics.median(speeds[OURS])
    contestants = []
    for name, values in speeds.items():
        paired = statistics.median(mine / other for mine, other in zip(speeds[OURS], values, strict=True))
        wasted = 1 - sum(one[name].tokens for one in rounds.taken) / sum(one[name].places for one in rounds.taken)
        row = {"contestant": name, "tokens_per_second": statistics.median(values), "each_round": values}
        row |= {"times": ours / statistics.median(values) if name == TRAINER else paired, "padding": wasted}
        contestants.append(row)
    rows = rounds.rows
    shares = [row.num_supervised / row.num_tokens for row in rows]
    pairs = [(one[OURS].seconds, one[BARE].seconds, row) for one, row in zip(rounds.taken, rows, strict=True)]
    return {
        "distribution": distribution,
        "documents_per_step": statistics.mean(row.num_documents for row in rows),
        "trainer_documents_per_step": rounds.per_batch,
        "supervised": statistics.mean(shares),
        "overhead": statistics.median((ours - row.phases["optimizer"]) / passes(row) - 1 for ours, _, row in pairs),
        "over_bare": statistics.median((ours - row.phases["optimizer"]) / bare - 1 for ours, bare, row in pairs),
        "update": statistics.median(row.phases["optimizer"] / passes(row) for *_, row in pairs),
        "waiting": statistics.median(row.phases["wait"] / ours for ours, _, row in pairs),
        "padding_in_batches_of": {size: padding_of(rounds.lengths, size) for size in (4, 8, 16, 32)},
        "phases": [row.phases for row in rows],
        "contestants": contestants,
    }


def padding_of(lengths: Sequence[int], size: int) -> float:
    """Share of the places that are padding where shuffled documents are batched by so many."""
    shuffled = np.random.default_rng(0).permutation(lengths)[: len(lengths) // size * size].reshape(-1, size)
    return float(1 - shuffled.sum() / (shuffled.max(1) * size).sum())


def passes(row: StepRow) -> float:
    """Seconds of a step's own forward and backward pass."""
    return row.phases["forward"] + row.phases["backward"]


def failures(results: list[dict[str, Any]]) -> list[str]:
    lines = []
    for result in results:
        times = {row["contestant"]: row["times"] for row in result["contestants"]}
        lines += [
            f"{result['distribution']}: {times[name]:.2f} times as fast as {name}, the claim is {least}"
            for name, least in LEAST.items()
            if times[name] < least
        ]
        if result["overhead"] > MOST_OVERHEAD:
            lines.append(f"{result['distribution']}: overhead {result['overhead']:.1%}, over {MOST_OVERHEAD:.0%}")
    return lines


def show(result: dict[str, Any]) -> None:
    rows = [
        [row["contestant"], f"{row['tokens_per_second']:,.0f}", f"{row['times']:.2f}x", f"{row['padding']:.0%}"]
        for row in result["contestants"]
    ]
    title = (
        f"{result['distribution']}: {result['supervised']:.0%} supervised, {result['documents_per_step']:.1f} a step"
    )
    show_table(title, ["", "tokens/s", "ours is", "padding"], rows)
    costs = [("loop, loader, logging", "overhead"), ("the same, against bare passes", "over_bare")]
    costs += [("clipping and update", "update"), ("waiting for data", "waiting")]
    padding = [[str(size), f"{share:.0%}"] for size, share in result["padding_in_batches_of"].items()]
    show_table("padding, counted, of shuffled documents in batches of", ["documents", "padding"], padding)
    show_table("over bare passes", ["", "share"], [[name, f"{result[key]:.1%}"] for name, key in costs])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="that count; one more comes before them")
    parser.add_argument("--capacity", type=int, default=2048, help="tokens of a pack and of a padded batch")
    parser.add_argument("--distributions", nargs="+", default=list(WRITERS), choices=list(WRITERS))
    parser.add_argument("--quick", action="store_true", help="a tiny shape: shows that all runs, measures nothing")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--check", action="store_true", help="exit with 1 where the figures miss the claims")
    arguments = parser.parse_args()
    keep_memory()
    shape, num_documents = (TINY, 60) if arguments.quick else (SMOLLM2, 2000)
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = make_weights(folder, shape)
        for distribution in arguments.distributions:
            recipe = make_recipe(folder, weights, distribution, arguments.capacity, num_documents)
            rounds = Rounds(recipe, shape, arguments.rounds, arguments.capacity, folder)
            rounds.run()
            results.append(summary(rounds, distribution))
            show(results[-1])
    if arguments.json:
        body = {"machine": machine(), "torch": torch.__version__, "threads": torch.get_num_threads()}
        body |= {"quick": arguments.quick, "capacity": arguments.capacity, "rounds": arguments.rounds}
        arguments.json.write_text(json.dumps({**body, "results": results}, indent=2) + "\n")
    missed = failures(results) if arguments.check else []
    for line in missed:
        print(line, file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
