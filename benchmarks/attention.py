"""What it costs to keep documents apart: attention inside each document of a pack against one dense mask over the pack.

Claim: forward and backward of one layer's attention are at least 3 times as fast at packs of 8,192 tokens of captions.

    python benchmarks/attention.py [--tokens 4096 8192 16384] [--shapes smollm2 qwen2] [--device cpu] [--json FILE]
                                   [--check]

Captions are log-normal, 60 tokens in the mean. Shapes are those of SmolLM2-135M (9 heads, 3 for keys, 64 wide) and
Qwen2-1.5B (12, 2, 128). `packed` is rebus_packed: float32 and padded batches on the CPU, bfloat16 and variable-length
kernels on CUDA. `dense` is torch's scaled_dot_product_attention with a block-diagonal causal mask [T, T]; on CUDA there
is also `flex`, torch's flex_attention with a block mask, compiled. Layout or mask is made once, as for all layers of a
model, and its time stands apart. On the CPU time is CPU time of one thread, which other programs on the machine disturb
little. Each case runs in a process of its own; memory is the most that the process held
beyond what it held with its inputs made, layout or mask included: on the CPU the resident set, on CUDA the allocator's.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from machine import machine, measure_apart, most_held
from rebus.log import show_table
from rebus.model.attention import document_indices, documents_of, packed_attention

SHAPES = {"smollm2": (9, 3, 64), "qwen2": (12, 2, 128)}
"""Heads, heads of keys and values, width of one."""
WAYS = {"cpu": ("dense", "packed"), "cuda": ("dense", "flex", "packed")}
CLAIMED_TOKENS, LEAST_SPEED = 8192, 3.0
MIB = 2**20

Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Attend = Callable[[Inputs], torch.Tensor]


def caption_bounds(num_tokens: int) -> torch.Tensor:
    """int64 [D + 1]: captions until the pack is full; the last is cut."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.empty(num_tokens // 4).log_normal_(3.9, 0.6, generator=generator).clamp(4, 500).long()
    ends = lengths.cumsum(0)
    return torch.cat([torch.zeros(1, dtype=torch.int64), ends[ends < num_tokens], torch.tensor([num_tokens])])


def prepare(way: str, bounds: torch.Tensor, device: str) -> Attend:
    """Makes layout or mask; what it returns attends: [1, heads, T, d] each -> [1, T, heads, d]."""
    if way == "packed":
        documents = documents_of(bounds, device=device)
        return lambda inputs: packed_attention(torch.nn.Identity(), *inputs, None, documents=documents)[0]
    owner = document_indices(bounds.to(device))
    if way == "flex":
        return flex(owner)
    mask = (owner[:, None] == owner[None, :]).tril_()
    return lambda inputs: scaled_dot_product_attention(*inputs, attn_mask=mask, enable_gqa=True).transpose(1, 2)


def flex(owner: torch.Tensor) -> Attend:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def sees(_: Any, __: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return (owner[query] == owner[key]) & (query >= key)

    mask = create_block_mask(sees, None, None, len(owner), len(owner), device=owner.device.type)
    compiled: Any = torch.compile(flex_attention)
    return lambda inputs: compiled(*inputs, block_mask=mask, enable_gqa=True).transpose(1, 2)


def run_case(way: str, shape: str, num_tokens: int, device: str) -> dict:
    """One process's measurement. The first call's figures count for memory, the quickest of the others for time."""
    torch.manual_seed(0)
    clock = time.process_time if device == "cpu" else time.perf_counter
    if device == "cpu":
        torch.set_num_threads(1)
    heads, kv_heads, width = SHAPES[shape]
    bounds, dtype = caption_bounds(num_tokens), torch.float32 if device == "cpu" else torch.bfloat16
    counts = (heads, kv_heads, kv_heads)
    drawn = [torch.randn(1, count, num_tokens, width).to(device, dtype).requires_grad_() for count in counts]
    inputs, weights = (drawn[0], drawn[1], drawn[2]), torch.randn(1, num_tokens, heads, width).to(device, dtype)
    before = most_held(device)
    start = clock()
    attend = prepare(way, bounds, device)
    settle(device)
    ready, seconds = clock() - start, []
    for _ in range(4):
        start = clock()
        output = attend(inputs)
        gradients = torch.autograd.grad(output, inputs, weights)
        settle(device)
        seconds.append(clock() - start)
        if len(seconds) == 1:
            peak = most_held(device)
    figures = {"way": way, "shape": shape, "tokens": num_tokens, "documents": len(bounds) - 1, "device": device}
    figures |= {"seconds": round(min(seconds[1:]), 5), "seconds_ready": round(ready, 5)}
    sums = [float(gradient.float().norm()) for gradient in gradients]
    return {
        **figures,
        "mib": round((peak - before) / MIB, 1),
        "output": float(output.detach().float().norm()),
        "gradients": sums,
    }


def settle(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def measure(shape: str, num_tokens: int, device: str) -> list[dict]:
    """A row for each way, the dense mask first."""
    rows = [measure_apart(__file__, [way, shape, num_tokens, device]) for way in WAYS[device]]
    tolerance = 1e-4 if device == "cpu" else 0.01
    for row in rows[1:]:
        pairs = zip([row["output"], *row["gradients"]], [rows[0]["output"], *rows[0]["gradients"]], strict=True)
        assert all(abs(ours - theirs) <= tolerance * theirs for ours, theirs in pairs), (
            "the ways must compute one thing"
        )
    dense = rows[0]
    return [{**row, "times_as_fast": round(dense["seconds"] / row["seconds"], 2)} for row in rows]


def failures(rows: list[dict]) -> list[str]:
    claimed = [row for row in rows if row["way"] == "packed" and row["tokens"] == CLAIMED_TOKENS]
    if not claimed:
        return [f"nothing was measured at {CLAIMED_TOKENS} tokens, which the claim is about"]
    return [
        f"{row['shape']}, {row['tokens']} tokens: {row['times_as_fast']} times as fast, the claim is {LEAST_SPEED}"
        for row in claimed
        if row["times_as_fast"] < LEAST_SPEED
    ]


def show(rows: list[dict]) -> None:
    columns = ["shape", "tokens", "documents", "way", "ms", "speed", "ms to make ready", "MiB"]
    table = []
    for row in rows:
        line = [row["shape"], f"{row['tokens']:,}", row["documents"], row["way"], f"{1000 * row['seconds']:,.1f}"]
        line += [f"{row['times_as_fast']:.1f}x", f"{1000 * row['seconds_ready']:,.1f}", f"{row['mib']:,.0f}"]
        table.append(line)
    show_table("attention of one layer: forward and backward", columns, table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 8192, 16384])
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=list(WAYS))
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--check", action="store_true", help="exit with 1 where the figures miss the claim")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(run_case(*json.loads(arguments.case))))
        return 0
    cases = [(shape, tokens) for shape in arguments.shapes for tokens in arguments.tokens]
    rows = [row for shape, tokens in cases for row in measure(shape, tokens, arguments.device)]
    show(rows)
    if arguments.json:
        body = {"machine": machine(arguments.device), "torch": torch.__version__, "rows": rows}
        arguments.json.write_text(json.dumps(body, indent=1) + "\n")
    missed = failures(rows) if arguments.check else []
    for line in missed:
        print(line, file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
