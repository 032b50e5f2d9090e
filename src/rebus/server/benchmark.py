"""How fast and how large one request is: warm-up, then runs that are timed one by one."""

import resource
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from rebus.log import show_table
from rebus.model.generate import Decoder
from rebus.server.engine import Engine, Request

NUM_WARM_UPS = 2
MB = 1e6


@dataclass(frozen=True)
class Timing:
    """Seconds of one run. prepare: pictures and tokens, on the host. first_token: from the start to the first new
    token, preparing included. total: to the last."""

    prepare: float
    first_token: float
    total: float
    num_prompt_tokens: int
    num_new_tokens: int

    @property
    def prompt_tokens_per_second(self) -> float:
        return self.num_prompt_tokens / max(self.first_token - self.prepare, 1e-9)

    @property
    def new_tokens_per_second(self) -> float:
        """Of decoding alone: the tokens after the first, of which there must be one, over the time after the first."""
        return (self.num_new_tokens - 1) / max(self.total - self.first_token, 1e-9)


def measure(engine: Engine, request: Request, num_runs: int) -> dict[str, Any]:
    """Runs a request NUM_WARM_UPS times untimed and `num_runs` times timed; the same seed, so the same tokens.

    Returns JSON values: each figure as mean, standard deviation (over runs - 1; 0 for one run), least and largest of
    all timed runs; the runs themselves; and memory.
    """
    for _ in range(NUM_WARM_UPS):
        run_once(engine, request)
    if engine.model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(engine.model.device)
    runs = [run_once(engine, request) for _ in range(num_runs)]
    figures = {
        "prepare_seconds": [run.prepare for run in runs],
        "first_token_seconds": [run.first_token for run in runs],
        "total_seconds": [run.total for run in runs],
        "new_tokens_per_second": [run.new_tokens_per_second for run in runs if run.num_new_tokens > 1],
        "prompt_tokens_per_second": [run.prompt_tokens_per_second for run in runs],
    }
    return {
        "num_warm_ups": NUM_WARM_UPS,
        "num_runs": len(runs),
        "device": _device_name(engine.model.device),
        "dtype": str(engine.model.head.weight.dtype).removeprefix("torch."),
        "num_prompt_tokens": runs[0].num_prompt_tokens,
        "num_new_tokens": runs[0].num_new_tokens,
        **{name: spread(values) for name, values in figures.items() if values},
        "memory_mb": memory(engine.model.device),
        "runs": [asdict(run) for run in runs],
    }


def run_once(engine: Engine, request: Request) -> Timing:
    """One answer, timed. What is still running on a GPU is waited for before each look at the clock: choosing a token
    brings it to the host."""
    _wait(engine.model.device)
    start = time.perf_counter()
    prompt, encoded = engine.prompt(request)
    _wait(engine.model.device)
    prepared = time.perf_counter()
    decoder = Decoder(engine.model)
    decoder.add(prompt, request.sampling)
    room = min(request.sampling.max_new_tokens, engine.tokens.config.max_tokens - encoded.num_tokens)
    first, num_new = 0.0, 0
    for _ in range(room):
        token = decoder.step()[0][1]
        first = first or time.perf_counter()
        num_new += 1
        if token in engine.stop_ids:
            break
    end = time.perf_counter()
    return Timing(prepared - start, first - start, end - start, encoded.num_tokens, num_new)


def spread(values: Sequence[float]) -> dict[str, float]:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "std": deviation, "min": min(values), "max": max(values)}


def memory(device: torch.device) -> dict[str, float]:
    """Megabytes (10^6 bytes). On CUDA: allocated now, reserved now, and the largest of both during the timed runs. On
    the CPU: what the process holds now and the most it ever held, loading included."""
    if device.type == "cuda":
        return {
            "allocated": torch.cuda.memory_allocated(device) / MB,
            "reserved": torch.cuda.memory_reserved(device) / MB,
            "max_allocated": torch.cuda.max_memory_allocated(device) / MB,
            "max_reserved": torch.cuda.max_memory_reserved(device) / MB,
        }
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts in bytes there, in KiB elsewhere
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MB
    pages = Path("/proc/self/statm")
    if not pages.is_file():
        return {"max_resident": most}
    now = int(pages.read_text().split()[1]) * resource.getpagesize() / MB
    return {"max_resident": max(most, now), "resident": now}  # Linux brings the peak up to date now and then


def show(figures: dict[str, Any]) -> None:
    names = [name for name, value in figures.items() if isinstance(value, dict) and "mean" in value]
    rows = [(name, *(f"{figures[name][key]:,.4g}" for key in ("mean", "std", "min", "max"))) for name in names]
    title = (
        f"{figures['num_runs']} runs after {figures['num_warm_ups']} to warm up, {figures['device']}, "
        f"{figures['dtype']}: {figures['num_prompt_tokens']} prompt tokens, {figures['num_new_tokens']} new"
    )
    show_table(title, ("", "mean", "std", "min", "max"), rows)
    show_table("Memory", ("", "MB"), [(name, f"{value:,.0f}") for name, value in figures["memory_mb"].items()])


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
