"""What the loss costs: cross entropy in chunks of supervised positions against logits of the whole pack.

Claim: its peak memory is at most an eighth of the full logits', at packs of 4,096, 8,192 and 16,384 tokens of captions,
of whose positions nearly all are supervised (with pictures, where few are, the full logits do no better, and ours do).

    python benchmarks/loss.py [--tokens 4096 8192 16384] [--pictures 0 144] [--device cpu] [--json FILE] [--check]

Forward and backward of one output layer in float32: 49,152 words, 576 wide (SmolLM2-135M's), gradients by states and
weight. `full` is torch's cross_entropy over all logits. Each case runs in a process of its own; memory is the most that
the process held beyond what it held with its inputs made. On the CPU that is the resident set, on CUDA the allocator's.
Captions are as long as alt texts: log-normal, 20 tokens in the median. --pictures: positions of one before each.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch

from machine import machine, measure_apart, most_held
from rebus.log import show_table
from rebus.model.loss import IGNORED, token_loss

VOCABULARY, WIDTH = 49_152, 576
WAYS = ("full", "chunked")
MOST_MEMORY = 1 / 8
MIB = 2**20


def make_labels(num_tokens: int, num_pictured: int) -> torch.Tensor:
    """int64 [T]: documents of a picture and a caption; a position is supervised where text of its document follows."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.full((num_tokens,), IGNORED)
    start = 0
    while start < num_tokens:
        length = num_pictured + int(torch.empty(1).log_normal_(3.0, 0.6, generator=generator).clamp(4, 200))
        first = start + max(0, num_pictured - 1)
        last = min(start + length, num_tokens) - 1
        if last > first:
            labels[first:last] = torch.randint(0, VOCABULARY, (last - first,), generator=generator)
        start += length
    return labels


def full_loss(states: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(states @ weight.T, labels, ignore_index=IGNORED, reduction="sum")


def run_case(way: str, num_tokens: int, num_pictured: int, device: str) -> dict:
    """One process's measurement. The first call's figures count for memory, the quicker of two for time."""
    torch.manual_seed(0)
    states = torch.randn(num_tokens, WIDTH, device=device, requires_grad=True)
    weight = (torch.randn(VOCABULARY, WIDTH, device=device) / WIDTH**0.5).requires_grad_()
    labels = make_labels(num_tokens, num_pictured).to(device)
    before, seconds = most_held(device), []
    for _ in range(2):
        states.grad = weight.grad = None
        start = time.perf_counter()
        loss = full_loss(states, labels, weight) if way == "full" else token_loss(states, labels, weight)[0]
        loss.backward()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    assert weight.grad is not None
    figures = {"way": way, "tokens": num_tokens, "pictures": num_pictured, "device": device}
    figures["supervised"] = int((labels != IGNORED).sum())
    figures["seconds"] = round(min(seconds), 3)
    figures["mib"] = round((most_held(device) - before) / MIB, 1)
    return {**figures, "loss": loss.item(), "gradient": float(weight.grad.norm())}


def measure(num_tokens: int, num_pictured: int, device: str) -> list[dict]:
    full, ours = rows = [measure_apart(__file__, [way, num_tokens, num_pictured, device]) for way in WAYS]
    assert abs(full["loss"] - ours["loss"]) <= 1e-5 * full["loss"], "the two ways must compute one loss"
    assert abs(full["gradient"] - ours["gradient"]) <= 1e-4 * full["gradient"]
    return rows


def failures(rows: list[dict]) -> list[str]:
    lines = []
    for full, ours in zip(rows[::2], rows[1::2], strict=True):
        share = ours["mib"] / full["mib"]
        if share > MOST_MEMORY:
            lines.append(f"{ours['tokens']} tokens: {share:.3f} of the full logits' memory, over {MOST_MEMORY}")
    return lines


def show(rows: list[dict]) -> None:
    table = []
    for full, ours in zip(rows[::2], rows[1::2], strict=True):
        for row in (full, ours):
            ratios = (f"{row['mib'] / full['mib']:.3f}", f"{full['seconds'] / row['seconds']:.2f}x")
            table.append((row["way"], f"{row['tokens']:,}", f"{row['supervised']:,}", f"{row['mib']:,.0f}", ratios[0]))
            table[-1] += (f"{row['seconds']:.2f}", ratios[1])
    columns = ["way", "tokens", "supervised", "MiB", "of full", "seconds", "speed"]
    show_table("loss: forward and backward of the output layer", columns, table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 8192, 16384])
    parser.add_argument(
        "--pictures", type=int, nargs="+", default=[0, 144], help="positions of the picture before each"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--check", action="store_true", help="exit with 1 where the figures miss the claim")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(run_case(*json.loads(arguments.case))))
        return 0
    cases = [(tokens, pictures) for pictures in arguments.pictures for tokens in arguments.tokens]
    rows = [row for tokens, pictures in cases for row in measure(tokens, pictures, arguments.device)]
    show(rows)
    if arguments.json:
        on = torch.cuda.get_device_name() if arguments.device == "cuda" else machine()
        arguments.json.write_text(
            json.dumps({"machine": on, "torch": torch.__version__, "rows": rows}, indent=2) + "\n"
        )
    missed = failures(rows) if arguments.check else []
    for line in missed:
        print(line, file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
