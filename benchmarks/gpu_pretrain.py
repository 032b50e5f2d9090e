"""The published training shapes through the real training step, on one GPU, with random weights.

    python benchmarks/gpu_pretrain.py [--shape open_qwen2vl] [--packs 1] [--steps 20] [--json FILE]

open_qwen2vl: pre-training. SigLIP-SO400M-384 frozen, 729 patches pooled to 144 tokens, Qwen2.5-1.5B, packs of 4,096
tokens of pictures with captions (176 tokens in the mean). Its paper (section 3) took 220 A100 hours for 5 B tokens;
the hours that this GPU would take stand beside. llava_next_7b: fine-tuning of all of it, CLIP-L-336 on tiles and
Vicuna-7B, packs of 8,192. qwen2_vl_2b: fine-tuning behind a frozen tower, packs of 2,560.

Tokens/s count every token of a pack; MFU is model FLOPs (rebus.training.flops: causal, frozen parts at what they cost,
padding and recomputation at nothing) over the GPU's peak by its data sheet. Batches are made before the clock runs:
what loading costs, benchmarks/training.py says. --tiny: a tiny shape of the same kind, on the CPU as well.
"""

import argparse
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from machine import machine, most_held
from rebus.batches.batch import IGNORE, Batch
from rebus.errors import ConfigError
from rebus.log import show_table
from rebus.mesh import join_mesh, leave_mesh
from rebus.model.assemble import assemble
from rebus.model.config import ModelConfig
from rebus.pictures.config import AnyresConfig, FixedConfig, ImageConfig, NativeConfig
from rebus.pictures.prepare import layout
from rebus.records import Image
from rebus.tokens.positions import token_positions
from rebus.towers.config import TowerConfig
from rebus.training.config import TrainRecipe
from rebus.training.devices import peak_here
from rebus.training.flops import Flops, flops_of
from rebus.training.optimizer import build_optimizer
from rebus.training.parallel import distribute
from rebus.training.parts import by_part, freeze_all_but
from rebus.training.step import train_step
from rebus.training.timing import Stopwatch

PAPER = {"tokens": 5e9, "gpu_hours": 220.0, "gpu": "A100-40G", "source": "Open-Qwen2VL, section 3"}
HERE = Path("random")


@dataclass(frozen=True)
class Shape:
    """vision, text: the hub's configs. picture: (width, height) in pixels. words: tokens of text beside each picture.
    supervised: share of those that is trained on. capacity: tokens of a pack."""

    image: ImageConfig
    tower: TowerConfig
    vision: dict[str, Any]
    text: dict[str, Any]
    trains: dict[str, Any]
    picture: tuple[int, int]
    words: int
    supervised: float
    capacity: int
    connector: str = "mlp2x_gelu"
    mrope: tuple[int, int, int] | None = None
    settings: dict[str, Any] = field(default_factory=dict)


def text(
    kind: str, width: int, inner: int, layers: int, heads: int, kv: int, words: int, **more: Any
) -> dict[str, Any]:
    shape = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers, "vocab_size": words}
    ends = {"bos_token_id": 1, "eos_token_id": 2}
    return {"model_type": kind, **shape, "num_attention_heads": heads, "num_key_value_heads": kv, **ends, **more}


def vision(kind: str, width: int, inner: int, layers: int, size: int, heads: int = 16) -> dict[str, Any]:
    shape = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers}
    return {"model_type": kind, **shape, "num_attention_heads": heads, "patch_size": 14, "image_size": size}


def hub(size: int) -> TowerConfig:
    return TowerConfig(kind="transformers", weights=HERE, image_size=size, select_layer=-2)


LEARN = {"connector": {"lr": 1e-5}, "language": {"lr": 1e-5}}
NATIVE = {"model_type": "qwen2_vl", "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "mlp_ratio": 4}


def shapes(*, tiny: bool) -> dict[str, Shape]:
    """The three; tiny: of the same kinds, a few channels wide."""
    qwen2, llama, native = (
        (text("qwen2", 64, 160, 2, 4, 2, 512), text("llama", 64, 160, 2, 4, 4, 512), {"embed_dim": 32, "depth": 2})
        if tiny
        else (
            text("qwen2", 1536, 8960, 28, 12, 2, 151_936, tie_word_embeddings=True),
            text("llama", 4096, 11_008, 32, 32, 32, 32_000),
            {"embed_dim": 1280, "depth": 32},
        )
    )
    siglip, clip = (
        (vision("siglip_vision_model", 32, 48, 3, 56, 2), vision("clip_vision_model", 32, 48, 3, 56, 2))
        if tiny
        else (vision("siglip_vision_model", 1152, 4304, 27, 384), vision("clip_vision_model", 1024, 4096, 24, 336))
    )
    squares = FixedConfig(size=56 if tiny else 384, patch_size=14, tokens_per_side=2 if tiny else 12)
    tiles = AnyresConfig(kind="anyres", size=56 if tiny else 336, tokens_per_side=4 if tiny else 24)
    patches = NativeConfig(kind="native", min_pixels=28 * 28 * 4)
    mrope = (2, 3, 3) if tiny else (16, 24, 24)
    kind = TowerConfig(kind="qwen2_vl", weights=HERE)
    everything = {"tower": {"lr": 2e-6}, **LEARN}
    heads = {"num_heads": 2 if tiny else 16, "hidden_size": 64 if tiny else 1536}
    return {
        "open_qwen2vl": Shape(
            squares, hub(squares.size), siglip, qwen2, LEARN, (640, 480), 32, 1.0, 128 if tiny else 4096
        ),
        "llava_next_7b": Shape(
            tiles, hub(tiles.size), {**clip, "hidden_act": "quick_gelu"}, llama, everything, (640, 480), 380, 0.5,
            512 if tiny else 8192,
        ),
        "qwen2_vl_2b": Shape(
            patches, kind, {**NATIVE, **native, **heads}, qwen2, LEARN, (112, 84) if tiny else (640, 448), 235, 0.4,
            512 if tiny else 2560, "qwen2_merger", mrope,
        ),
    }  # fmt: skip


def recipe_of(shape: Shape, arguments: argparse.Namespace, device: str) -> TrainRecipe:
    return TrainRecipe.model_validate(
        {
            **{"out": HERE, "plan": HERE, "init": HERE, "steps": 1, "trains": shape.trains},
            **{"packs_per_step": arguments.packs * arguments.micro_batches, "packs_per_batch": arguments.packs},
            **{"device": device, "precision": arguments.precision, "activations": arguments.activations},
            **{"compile": arguments.compile, "optimizer": {"kind": arguments.optimizer}},
        }
    )


def make_batch(shape: Shape, num_packs: int, vocabulary: int, seed: int) -> Batch:
    """Packs filled with documents of one picture and its text, whose length is log-normal around `words`."""
    generator = torch.Generator().manual_seed(seed)
    seen = layout(Image(*shape.picture, None), shape.image)
    lengths: list[int] = []
    for _ in range(num_packs):
        left = shape.capacity
        while left > seen.num_tokens + 2:
            drawn = torch.empty(1).log_normal_(0.0, 0.5, generator=generator).item() * shape.words * 0.88
            lengths.append(min(seen.num_tokens + max(2, round(drawn)), left))
            left -= lengths[-1]
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    slots = torch.stack([bounds[:-1], torch.full((len(lengths),), seen.num_tokens)], 1)
    ids = torch.randint(0, vocabulary, (int(bounds[-1]),), generator=generator)
    within = torch.arange(len(ids)) - bounds[:-1].repeat_interleave(torch.tensor(lengths))
    ids[within < seen.num_tokens] = -1
    labels = ids.roll(-1)
    labels[(torch.rand(len(ids), generator=generator) > shape.supervised) | (labels < 0)] = IGNORE
    labels[bounds[1:] - 1] = IGNORE
    grids = torch.tensor([seen.grid] * len(lengths))
    positions = token_positions(
        bounds.numpy(), slots[:, 0].numpy(), slots[:, 1].numpy(), grids.numpy(), torch.zeros(len(lengths)).numpy(),
        shape.image,
    )  # fmt: skip
    rows = int(grids.prod(1).sum()) if isinstance(shape.image, NativeConfig) else int(grids[:, 0].sum())
    pixels = torch.randint(0, 256, (rows, *shape.image.row_shape), dtype=torch.uint8, generator=generator)
    names = tuple(str(number) for number in range(len(lengths)))
    where = torch.from_numpy(positions)
    return Batch(ids, labels, where, bounds.int(), pixels, slots, grids, names, names, image=shape.image)


def build(shape: Shape, recipe: TrainRecipe, mesh: Any) -> tuple[Any, Flops, Any, dict[str, list]]:
    """Model with random weights, what its steps cost, optimizers and what learns, as a run has them."""
    config = ModelConfig(tower=shape.tower, connector=shape.connector, language=HERE, mrope_section=shape.mrope)
    model = assemble(config, shape.image, vision=shape.vision, text=shape.text)
    trainable = freeze_all_but(model, recipe.trains)
    flops = flops_of(model, recipe.activations)
    model.to_empty(device=recipe.device)
    model.language.tie_weights()  # emptied one by one, tied weights are two
    reset_buffers(model, config, shape)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02) if parameter.ndim > 1 else parameter.fill_(0.5)
    distribute(model, recipe, mesh)
    learns = {name: parameter for name, parameter in model.named_parameters() if name in trainable}
    optimizers = build_optimizer(learns, recipe.trains, recipe.optimizer)
    return model.train(), flops, optimizers, by_part(learns, recipe.trains)


def reset_buffers(model: Any, config: ModelConfig, shape: Shape) -> None:
    """`to_empty` empties rotary tables and the like too: they come from a model that was never emptied."""
    whole = assemble(config, shape.image, vision=shape.vision, text=shape.text)
    made = dict(whole.named_buffers())
    for name, buffer in model.named_buffers():
        buffer.copy_(made[name])


def measure(shape: Shape, arguments: argparse.Namespace, device: str) -> dict[str, Any]:
    recipe = recipe_of(shape, arguments, device)
    mesh = join_mesh(device, always=recipe.precision != "fp32")
    try:
        model, flops, optimizers, parts = build(shape, recipe, mesh)
        vocabulary, made = shape.text["vocab_size"], arguments.micro_batches
        batches = [[make_batch(shape, arguments.packs, vocabulary, 97 * n + m) for m in range(made)] for n in range(2)]
        watch, losses = Stopwatch(device), []
        for step in range(arguments.warmup + arguments.steps):
            if step == arguments.warmup:
                start = settled(device, watch)
            mine = batches[step % len(batches)]
            supervised = sum(batch.num_supervised for batch in mine)
            result = train_step(
                model, mine, optimizers, parts, num_supervised=supervised, max_grad_norm=1.0, device=device, mesh=mesh,
                watch=watch,
            )  # fmt: skip
            losses.append(result.loss)
        phases = watch.lap()
        seconds = (settled(device, watch) - start) / arguments.steps
    finally:
        leave_mesh(mesh)
    taken = [batches[step % len(batches)] for step in range(arguments.warmup, arguments.warmup + arguments.steps)]
    return figures(arguments, device, flops, taken, seconds, losses, phases)


def settled(device: str, watch: Stopwatch) -> float:
    """The clock, once the GPU has done all that it was told."""
    if device == "cuda":
        torch.cuda.synchronize()
    watch.lap()
    return time.perf_counter()


def figures(
    arguments: argparse.Namespace,
    device: str,
    flops: Flops,
    taken: list[list[Batch]],
    seconds: float,
    losses: list[float],
    phases: dict[str, float],
) -> dict[str, Any]:
    steps = len(taken)
    tokens = sum(batch.num_tokens for step in taken for batch in step) / steps
    model = sum(flops.of(batch) for step in taken for batch in step) / steps
    again = sum(flops.recomputed(flops.work(batch)) for step in taken for batch in step) / steps
    peak = peak_here(device)
    hours = PAPER["tokens"] / (tokens / seconds) / 3600  # type: ignore[operator]
    is_paper = arguments.shape == "open_qwen2vl" and not arguments.tiny
    return {
        "shape": arguments.shape + (", tiny" if arguments.tiny else ""),
        "machine": machine(device),
        "torch": torch.__version__,
        "settings": {name: getattr(arguments, name) for name in SETTINGS},
        "tokens_per_step": round(tokens),
        "seconds_per_step": seconds,
        "tokens_per_second": tokens / seconds,
        "flops_per_second": model / seconds,
        "mfu": model / seconds / peak if peak else None,
        "hfu": (model + again) / seconds / peak if peak else None,
        "peak_gb": most_held(device) / 1e9,
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "phases": {name: spent / steps for name, spent in phases.items()},
        "gpu_hours_for_5b_tokens": hours if is_paper else None,
        "paper": PAPER if is_paper else None,
    }


SETTINGS = ("packs", "micro_batches", "precision", "activations", "compile", "optimizer", "warmup", "steps")


def show(found: dict[str, Any]) -> None:
    rows = [(name.replace("_", " "), said(value)) for name, value in found.items() if not isinstance(value, dict)]
    show_table(f"{found['shape']} on {found['machine']}", ["", ""], rows)
    if found["paper"]:
        show_table(
            "5 B tokens", ["", "GPU hours"], [("here", said(found["gpu_hours_for_5b_tokens"])), ("paper", "220")]
        )


def said(value: Any) -> str:
    if value is None:
        return "not known"
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="open_qwen2vl", choices=sorted(shapes(tiny=True)))
    parser.add_argument("--packs", type=int, default=1, help="of a micro-batch")
    parser.add_argument("--micro-batches", type=int, default=1, help="of a step")
    parser.add_argument("--precision", default="bf16", choices=("fp32", "bf16", "fp16"))
    parser.add_argument("--activations", default="off", choices=("off", "full", "selective"))
    parser.add_argument("--optimizer", default="adamw", choices=("adamw", "adamw_8bit", "muon"))
    parser.add_argument("--compile", action="store_true", help="blocks by torch.compile")
    parser.add_argument("--warmup", type=int, default=5, help="steps before the clock runs")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--tiny", action="store_true", help="a tiny shape of the same kind; the CPU will do")
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not arguments.tiny:
        print(
            "no GPU here (torch.cuda.is_available() is False): these shapes take one. --tiny runs a tiny shape on the "
            "CPU, whose figures say nothing about them.",
            file=sys.stderr,
        )
        return 1
    try:
        found = measure(shapes(tiny=arguments.tiny)[arguments.shape], arguments, device)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    show(found)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
