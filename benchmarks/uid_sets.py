"""How fast sets of uids are joined.

Claim: union, intersection, minus and exclusive or of two sets of ten million uids, half of each in the other, at no
less than five million uids a second (both operands counted) on one core, with the results of Python's own sets, which
are measured beside them on the same uids.

Operands are sorted arrays of 128-bit uids, as they lie in DataComp's .npy files; the baseline is given Python sets of
integers, ready made: what it takes to make them has a row of its own, as has sorting uids that lie in no order.
Seconds are CPU time, the best of three.

    python benchmarks/uid_sets.py [--json FILE] [--check] [--uids 1000000 10000000]
"""

import argparse
import json
import operator
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from machine import machine
from rebus.log import show_table
from rebus.uids import UID, in_one, intersection, minus, union, unique

OPERATIONS: dict[str, tuple[Callable, Callable]] = {
    "union": (union, operator.or_),
    "intersection": (intersection, operator.and_),
    "minus": (minus, operator.sub),
    "in one": (in_one, operator.xor),
}
MAKE = "from an unsorted list"
MIN_SPEED = 5_000_000
NUM_TIMES = 3


def draw(num_uids: int) -> np.ndarray:
    """Uids as hashes make them, in no order."""
    rng = np.random.default_rng(0)
    uids = np.empty(num_uids, dtype=UID)
    for half in ("f0", "f1"):
        uids[half] = rng.integers(0, 2**64, num_uids, dtype=np.uint64)
    return uids


def integers(uids: np.ndarray) -> list[int]:
    high, low = uids["f0"].tolist(), uids["f1"].tolist()
    return [one << 64 | other for one, other in zip(high, low, strict=True)]


def timed(function: Callable, *operands: Any) -> tuple[float, Any]:
    """Seconds of CPU time, the best of NUM_TIMES, and the result."""
    seconds, result = np.inf, None
    for _ in range(NUM_TIMES):
        result = None  # given back before the next one is made
        started = time.process_time()
        result = function(*operands)
        seconds = min(seconds, time.process_time() - started)
    return seconds, result


def measure(num_uids: int) -> list[dict[str, Any]]:
    """One row an operation: uids a second of both, and whether the results agree."""
    pool = draw(num_uids + num_uids // 2)
    parts = pool[:num_uids], pool[num_uids // 2 :]
    seconds, first = timed(unique, parts[0])
    sets = first, unique(parts[1])
    lists = [integers(part) for part in parts]
    python_seconds, one = timed(set, lists[0])
    theirs = one, set(lists[1])
    del lists
    rows = [row(num_uids, MAKE, num_uids, seconds, python_seconds, len(first) == len(one))]
    for name, (ours, python) in OPERATIONS.items():
        seconds, found = timed(ours, *sets)
        python_seconds, wanted = timed(python, *theirs)
        agree = len(found) == len(wanted) and wanted.issuperset(integers(found))
        rows.append(row(num_uids, name, 2 * num_uids, seconds, python_seconds, agree))
        print(".", end="", file=sys.stderr, flush=True)
    return rows


def row(num_uids: int, name: str, num_read: int, seconds: float, python: float, agree: bool) -> dict[str, Any]:
    return {
        "uids": num_uids,
        "operation": name,
        "uids_per_second": round(num_read / max(seconds, 1e-9)),
        "python_uids_per_second": round(num_read / max(python, 1e-9)),
        "agree": agree,
    }


def peak_of_union(num_uids: int) -> int:
    """Bytes that a union holds beyond its operands, result included."""
    import tracemalloc

    pool = draw(num_uids + num_uids // 2)
    first, second = unique(pool[:num_uids]), unique(pool[num_uids // 2 :])
    del pool
    tracemalloc.start()
    union(first, second)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def failures(rows: list[dict[str, Any]]) -> list[str]:
    """What misses the claim."""
    wrong = [f"{one['operation']} of {one['uids']:,}: not what Python's sets say" for one in rows if not one["agree"]]
    slow = [
        f"{one['operation']} of {one['uids']:,}: {one['uids_per_second']:,} uids/s, the claim is {MIN_SPEED:,}"
        for one in rows
        if one["operation"] != MAKE and one["uids_per_second"] < MIN_SPEED
    ]
    return wrong + slow


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--check", action="store_true", help="exit with 1 where the figures miss the claim")
    parser.add_argument("--uids", type=int, nargs="+", default=[1_000_000, 10_000_000])
    arguments = parser.parse_args()
    rows = [one for num_uids in arguments.uids for one in measure(num_uids)]
    print(file=sys.stderr)
    columns = ["uids in each", "operation", "uids/s", "Python's sets, uids/s", "the same"]
    table = [[f"{value:,}" if type(value) is int else value for value in one.values()] for one in rows]
    show_table("Sets of uids", columns, table)
    megabytes = {num_uids: peak_of_union(num_uids) // 2**20 for num_uids in arguments.uids}
    for num_uids, held in megabytes.items():
        print(f"a union of two times {num_uids:,} holds at most {held:,} MiB beside them, its result included")
    if arguments.json:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        body = {"machine": machine(), "peak_megabytes": peak, "union_megabytes": megabytes, "rows": rows}
        arguments.json.write_text(json.dumps(body, indent=1) + "\n")
    missed = failures(rows) if arguments.check else []
    for line in missed:
        print(line, file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
