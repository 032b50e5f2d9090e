"""How full packs are, and how fast they are made.

Claim: where documents are short against a pack, a plan of many needs at most 0.1% more packs than any packing could;
it never needs more than the textbook rules; a million documents go at no less than half the speed of ten thousand.

Three distributions of document lengths, in tokens: captions (144 image positions and an alt text), instructions (729
image positions and turns), native resolution (as many positions as the image is large). Synthetic, seeded.

    python benchmarks/binning.py [--json FILE] [--check] [--documents 10000 1000000]
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from rebus.log import show_table
from rebus.packs.binning import best_fit_decreasing, fill, first_fit_decreasing, next_fit
from rebus.packs.complement import fill_exactly

Rule = Callable[[np.ndarray, int], np.ndarray]

RULES: dict[str, Rule] = {
    "exact fill (ours)": fill_exactly,
    "best-fit decreasing (ours)": best_fit_decreasing,
    "first-fit decreasing": first_fit_decreasing,
    "next-fit": next_fit,
}
QUADRATIC_LIMIT = 10_000  # documents; the textbook loop would take hours for a million
CASES = {"captions": (4096, 16384), "instructions": (4096, 8192, 16384), "native resolution": (8192, 16384, 32768)}
SHORT_DOCUMENTS = {("captions", 4096), ("native resolution", 8192)}
MANY = 100_000  # with fewer, the one pack that stays part empty is already more than 0.1%


def draw(distribution: str, num_documents: int) -> np.ndarray:
    """Lengths in tokens, int64 [n]."""
    rng = np.random.default_rng(0)
    match distribution:
        case "captions":
            return 144 + rng.lognormal(3.3, 0.6, num_documents).astype(int).clip(3, 500)
        case "instructions":
            return (729 + rng.lognormal(5.3, 0.9, num_documents).astype(int)).clip(max=4096)
        case "native resolution":
            images = rng.lognormal(6.6, 0.8, num_documents).astype(int)
            return (60 + images + rng.lognormal(4.5, 0.8, num_documents).astype(int)).clip(max=8192)
    raise ValueError(distribution)


def measure(distribution: str, capacity: int, name: str, lengths: np.ndarray) -> dict:
    """One row: fill (0..1), documents per second of CPU time, packs beyond what any packing needs (0..1)."""
    started = time.process_time()
    packs = RULES[name](lengths, capacity)
    seconds = time.process_time() - started
    bound = -(-int(lengths.sum()) // capacity)
    return {
        "distribution": distribution,
        "capacity": capacity,
        "documents": len(lengths),
        "rule": name,
        "fill": fill(lengths, packs, capacity),
        "above_bound": (int(packs.max()) + 1) / bound - 1,
        "documents_per_second": len(lengths) / max(seconds, 1e-9),
    }


def measure_all(sizes: list[int]) -> list[dict]:
    rows = []
    for num_documents in sizes:
        for distribution, capacities in CASES.items():
            lengths = draw(distribution, num_documents)
            # The larger size shows how time grows; one capacity a distribution is enough for that.
            for capacity in capacities if num_documents <= QUADRATIC_LIMIT else capacities[:1]:
                names = [n for n in RULES if n != "first-fit decreasing" or num_documents <= QUADRATIC_LIMIT]
                rows += [measure(distribution, capacity, name, lengths) for name in names]
    return rows


def failures(rows: list[dict]) -> list[str]:
    """What misses the claim."""
    found = []
    ours = [row for row in rows if row["rule"] == "exact fill (ours)"]
    for row in ours:
        case = f"{row['distribution']} at {row['capacity']}, {row['documents']:,} documents"
        same = [r for r in rows if all(r[k] == row[k] for k in ("distribution", "capacity", "documents"))]
        best = max(r["fill"] for r in same)
        if row["fill"] < best:
            found.append(f"{case}: fill {row['fill']:.3%}, but another rule reaches {best:.3%}")
        is_short = (row["distribution"], row["capacity"]) in SHORT_DOCUMENTS
        if is_short and row["documents"] >= MANY and row["above_bound"] > 0.001:
            found.append(f"{case}: {row['above_bound']:.3%} more packs than the bound, the claim is 0.1%")
        fewer = [r for r in ours if r["distribution"] == row["distribution"] and r["capacity"] == row["capacity"]]
        speed = fewer[0]["documents_per_second"]
        if row["documents_per_second"] < speed / 2:
            found.append(f"{case}: {row['documents_per_second']:,.0f} documents/s, with fewer it was {speed:,.0f}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--check", action="store_true", help="exit with 1 where the figures miss the claim")
    parser.add_argument("--documents", type=int, nargs="+", default=[10_000, 1_000_000])
    arguments = parser.parse_args()
    rows = measure_all(arguments.documents)
    columns = ["distribution", "capacity", "documents", "rule", "fill", "above bound", "documents/s"]
    table = [
        [*list(row.values())[:4], f"{row['fill']:.2%}", f"{row['above_bound']:.2%}", round(row["documents_per_second"])]
        for row in rows
    ]
    show_table("Packing", columns, table)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")
    missed = failures(rows) if arguments.check else []
    for line in missed:
        print(line, file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
