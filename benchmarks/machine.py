"""What figures were measured on, to stand in every file of results; and cases, each in a process to itself."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil


def machine(device: str = "cpu") -> str:
    """Cores that this process may use, the processor's name, memory; or the GPU's name."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores, {names[0] if names else 'unknown'}, {psutil.virtual_memory().total / 2**30:.0f} GiB"


def measure_apart(script: str, case: list[Any]) -> dict[str, Any]:
    """What `python SCRIPT --case CASE` prints, a JSON object: peak memory is a process's own."""
    command = [sys.executable, script, "--case", json.dumps(case)]
    return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def most_held(device: str) -> int:
    """The most bytes that this process has held so far: its resident set, or on CUDA the allocator's."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
