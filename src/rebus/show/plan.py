"""A plan as a whole: how full its packs are, how long its documents, how much work each pack is."""

from dataclasses import dataclass

import numpy as np

from rebus.log import say, show_table
from rebus.packs.plan import TO_THE_END, Plan
from rebus.packs.summary import count_bins, print_bins


@dataclass(frozen=True)
class Summary:
    """rows: name and value, in words. lengths, fills: (from, number) of documents by tokens, of packs by percent."""

    rows: tuple[tuple[str, str], ...]
    lengths: tuple[tuple[int, int], ...]
    fills: tuple[tuple[int, int], ...]


def summarise(plan: Plan) -> Summary:
    """From the plan's columns alone: no sample is read."""
    lengths = plan.table["num_tokens"].to_numpy()
    positions = np.add.reduceat(lengths, plan.bounds[:-1], dtype=np.int64)
    documents = np.diff(plan.bounds)
    patches = plan.table["num_patches"].to_numpy().astype(np.int64)
    firsts, ends = plan.table["first_part"].to_numpy(), plan.table["end_part"].to_numpy()
    cut = int(np.count_nonzero((firsts != 0) | (ends != TO_THE_END)))
    fill = positions / plan.capacity
    rows = (
        ("packs", f"{plan.num_packs:,} of {plan.capacity:,} positions"),
        ("documents", f"{len(lengths):,}"),
        ("documents per pack", _spread(documents)),
        ("positions taken", f"{positions.sum():,} ({positions.sum() / plan.capacity / plan.num_packs:.2%})"),
        ("fill of a pack", _spread(100 * fill, "%")),
        ("images", f"{plan.num_images:,}"),
        ("patches", f"{int(patches.sum()):,}"),
        ("pieces of cut documents", f"{cut:,}"),
        ("blocks of shards", f"{len(plan.blocks) - 1:,}"),
        ("attention", "across documents" if plan.cross_document else "within documents"),
        ("cost of a pack", f"{_spread(plan.costs)}; dearest {plan.manifest.facts['cost_spread']:.2f} times the mean"),
    )
    return Summary(rows, count_bins(lengths), count_bins(np.floor(100 * fill).astype(np.int64)))


def print_plan(plan: Plan) -> None:
    summary = summarise(plan)
    show_table(f"{plan.folder}", ["plan", ""], summary.rows)
    print_bins("documents by length in tokens, from", summary.lengths)
    print_bins("packs by fill in %, from", summary.fills)
    say(f"`rebus show {plan.folder} --pack N` shows a pack, `--html FILE` makes a page of it.")


def _spread(values: np.ndarray, unit: str = "") -> str:
    low, middle, high = np.quantile(values, [0, 0.5, 1])
    return f"{low:,.4g} to {high:,.4g}{unit}, median {middle:,.4g}{unit}"
