"""What a plan holds, in numbers: written to pack.json, into the manifest's facts, and printed."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rebus.log import output, show_table
from rebus.packs.config import PackRecipe
from rebus.packs.lengths import Tally
from rebus.tokens.tokenizer import tokens_fingerprint

SUMMARY_FILE = "pack.json"
PACKS_PER_STEP = (32, 128, 512)
NUM_BINS, BAR_WIDTH = 12, 40  # of a histogram


@dataclass(frozen=True)
class PackSummary:
    """What a plan holds. fill: share of all positions that documents take. rule: which made fewer packs.

    num_repeated: documents beyond the first copy of each. num_omitted: documents that a repeat below 1 leaves out.
    num_other: samples on the other side of the validation split. num_cut samples were cut into num_pieces documents;
    num_dropped tokens of theirs are in none. cost_spread: the costliest pack against the mean one.
    histogram: (first length, documents). plan_bytes: size of plan.arrow.
    """

    num_packs: int
    num_documents: int
    num_tokens: int
    num_image_tokens: int
    fill: float
    unusable: dict[str, int]
    rule: str
    num_repeated: int
    num_omitted: int
    num_other: int
    num_cut: int
    num_pieces: int
    num_dropped: int
    cost_spread: float
    histogram: tuple[tuple[int, int], ...]
    plan_bytes: int


def summarise(
    recipe: PackRecipe,
    lengths: np.ndarray,
    copies: np.ndarray,
    costs: np.ndarray,
    *,
    num_image_tokens: int,
    unusable: dict[str, int],
    rule: str,
    tally: Tally,
    plan_bytes: int,
) -> PackSummary:
    """lengths: int [documents]. copies: int [different documents]. costs: float64 [packs]."""
    num_tokens = int(lengths.sum(dtype=np.int64))
    return PackSummary(
        num_packs=len(costs),
        num_documents=len(lengths),
        num_tokens=num_tokens,
        num_image_tokens=num_image_tokens,
        fill=num_tokens / (len(costs) * recipe.capacity),
        unusable=unusable,
        rule=rule,
        num_repeated=int(np.maximum(copies - 1, 0).sum()),
        num_omitted=int((copies == 0).sum()),
        num_other=tally.num_other,
        num_cut=tally.num_cut,
        num_pieces=tally.num_pieces,
        num_dropped=tally.num_dropped,
        cost_spread=float(costs.max() / costs.mean()) if costs.any() else 1.0,
        histogram=count_bins(lengths),
        plan_bytes=plan_bytes,
    )


def read_summary(out: Path) -> PackSummary:
    body = json.loads((out / SUMMARY_FILE).read_text())
    return PackSummary(**{**body, "histogram": tuple(map(tuple, body["histogram"]))})


def plan_facts(
    recipe: PackRecipe, folders: Sequence[Path], shards: Sequence[Path], blocks: Sequence[int], summary: PackSummary
) -> dict:
    """What readers of a plan rely on. blocks: the first pack of each block of shards, and the number of packs."""
    return {
        **{name: value for name, value in vars(summary).items() if name not in ("histogram", "unusable")},
        "capacity": recipe.capacity,
        "cross_document": recipe.cross_document,
        "cost": recipe.cost.model_dump(mode="json"),
        "blocks": list(blocks),
        "shards": [{"folder": str(shard.parent), "name": shard.name} for shard in shards],
        "shard_folders": {f"shards/{i}": str(folder) for i, folder in enumerate(folders)},
        "tokens": recipe.tokens.model_dump(mode="json"),
        "tokens_fingerprint": tokens_fingerprint(recipe.tokens),
    }


def report(recipe: PackRecipe, summary: PackSummary) -> None:
    """Prints the table and the histogram of lengths."""
    rows: list[tuple[str, object]] = [
        ("packs", summary.num_packs),
        ("documents", summary.num_documents),
        ("documents per pack", f"{summary.num_documents / summary.num_packs:.1f}"),
        ("tokens", summary.num_tokens),
        ("of images", f"{summary.num_image_tokens / summary.num_tokens:.1%}"),
        ("fill", f"{summary.fill:.2%}"),
        ("rule", summary.rule),
        ("cost of packs, max / mean", f"{summary.cost_spread:.2f}"),
        *((f"steps an epoch at {n} packs", -(-summary.num_packs // n)) for n in PACKS_PER_STEP),
        ("plan, bytes a document", f"{summary.plan_bytes / summary.num_documents:.1f}"),
        *_what_happened(summary),
        *((f"left out: {reason}", number) for reason, number in summary.unusable.items()),
    ]
    show_table(f"{recipe.out}: packs of {recipe.capacity:,} tokens", ["", ""], rows)
    print_bins("documents by length in tokens, from", summary.histogram)


def count_bins(values: np.ndarray) -> tuple[tuple[int, int], ...]:
    """values: int [n]. Returns: (first value, how many) of each bin of whole numbers."""
    counts, edges = np.histogram(values, bins=min(NUM_BINS, int(np.ptp(values)) + 1))
    return tuple((int(np.ceil(edge)), int(number)) for edge, number in zip(edges, counts, strict=False))


def print_bins(title: str, bins: Sequence[tuple[int, int]]) -> None:
    most = max(number for _, number in bins)
    output.print(title, highlight=False)
    for start, number in bins:
        filled = "█" * round(BAR_WIDTH * number / most)
        output.print(f"{start:>7,}  {filled:<{BAR_WIDTH}} {number:,}", highlight=False)


def _what_happened(summary: PackSummary) -> list[tuple[str, object]]:
    """Only what did."""
    rows: list[tuple[str, object]] = [
        ("documents that are repeats", summary.num_repeated),
        ("documents omitted by a repeat below 1", summary.num_omitted),
        ("samples on the other side of the split", summary.num_other),
        ("samples cut", summary.num_cut),
        ("  into documents", summary.num_pieces),
        ("  tokens dropped", summary.num_dropped),
    ]
    return [(name, number) for name, number in rows if number or (name.startswith(" ") and summary.num_cut)]
