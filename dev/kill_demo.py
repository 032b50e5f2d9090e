"""Kills `make demo` with SIGKILL at random moments, runs it again each time, and compares the end with a calm run's.

    python dev/kill_demo.py --reference runs/demo_calm/results.json --kills 10 --seed 1

Start in a clone without runs/demo (`make clean`). Each run is killed, its whole process group at once, after a random
time of up to --longest seconds. Exits with 1 where a number other than a time or a memory peak differs.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

RESULTS = Path("runs/demo/results.json")
VARYING = ("seconds", "rss", "tokens_per_second")
"""Parts of the names of results that are times or memory peaks, which no two runs share."""


def run_for(seconds: float | None) -> int | None:
    """Runs `make demo`; after so many seconds kills it and all that it started. Returns its exit status if it ended."""
    process = subprocess.Popen(["make", "demo"], stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return None


def lasting(results: dict) -> dict:
    return {name: value for name, value in results.items() if not any(part in name for part in VARYING)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, required=True, help="results.json of an undisturbed run")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--longest", type=float, default=110.0, help="seconds")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    dice = random.Random(arguments.seed)
    started = time.monotonic()
    for number in range(arguments.kills):
        moment = dice.uniform(1.0, arguments.longest)
        status = run_for(moment)
        stages = sorted(path.parent.name for path in Path("runs/demo").glob("*/manifest.json"))
        print(f"kill {number + 1}: after {moment:.1f} s, {len(stages)} artifacts whole, status {status}", flush=True)
    status = run_for(None)
    print(f"last run: status {status}, {time.monotonic() - started:.0f} s in all", flush=True)
    expected = lasting(json.loads(arguments.reference.read_text()))
    found = lasting(json.loads(RESULTS.read_text()))
    differing = {n: (expected.get(n), found.get(n)) for n in expected | found if expected.get(n) != found.get(n)}
    print(f"{len(expected)} results compared, differing: {differing or 'none'}")
    sys.exit(bool(differing or status))


if __name__ == "__main__":
    main()
