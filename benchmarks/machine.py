"""What figures were measured on, to stand in every file of results."""

import os
from pathlib import Path

import psutil


def machine() -> str:
    """Cores that this process may use, the processor's name, memory."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores, {names[0] if names else 'unknown'}, {psutil.virtual_memory().total / 2**30:.0f} GiB"
