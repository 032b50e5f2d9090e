"""What a training run holds on each GPU, foretold from shapes alone (docs/budget.md states every formula).

Weights, gradients and optimizer states are exact. Activations are the tensors that blocks of our architectures keep
for their backward pass, counted one by one; what an allocator adds is a stated margin.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from math import prod

from torch import nn

from rebus.model.config import LoraConfig
from rebus.model.families import VisionLanguageModel
from rebus.training.activations import BYTES, FULL, activations_of, base
from rebus.training.config import TrainRecipe
from rebus.training.flops import Work, linears_of
from rebus.training.optimizer import is_inner_matrix
from rebus.training.parallel import blocks, is_sharded, shard_ranks

CONTEXT = 800_000_000
"""Bytes that CUDA, its libraries and NCCL take before the first tensor (an assumption)."""
FRAGMENTS = 0.06
"""Of what is held, lost between the blocks of the allocator (an assumption)."""
BLOCK_8BIT, LEAST_8BIT = 256, 4096
"""States of 8 bits share a scale in blocks of so many values; smaller tensors keep 32 bits (torchao)."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU. weights, gradients, optimizer, average: as they lie between steps (average: of `ema`).
    gathered: copies of blocks to compute with, and gradients on their way. activations: kept for the backward pass.
    workspace: the most that one operation needs beside that. pixels: of a micro-batch. margin: context and allocator.
    host: in the host's memory, where `cpu_offload` puts it there; no part of the total.
    """

    weights: float
    gradients: float
    optimizer: float
    average: float
    gathered: float
    activations: float
    workspace: float
    pixels: float
    margin: float
    host: float = 0.0

    @property
    def total(self) -> float:
        return sum(getattr(self, field.name) for field in fields(self) if field.name != "host")


def memory_of(model: VisionLanguageModel, recipe: TrainRecipe, work: Work, *, world: int) -> Memory:
    """Of the fullest rank. model: on any device, meta too, not sharded yet, its `requires_grad` set. work: of the
    largest micro-batch. world: processes, one a GPU."""
    held = _held(model, recipe, world)
    states = held if not recipe.parallel.cpu_offload else _Held(held.apart, 0, 0, 0, held.apart)
    gradients = max(states.gradients, _pending(model, recipe, world))
    gathered = _gathered(model, recipe, world)
    activations, workspace = activations_of(model, recipe, work)
    rows = work.encoded * prod(model.image.row_shape) if work.encoded else 0.0
    pixels = rows * (1 + FULL)  # bytes as they travel, and normalised
    total = states.weights + gradients + states.optimizer + states.average
    total += gathered + activations + workspace + pixels
    host = held.weights - held.apart + held.gradients + held.optimizer + held.average
    return Memory(
        *(states.weights, gradients, states.optimizer, states.average),
        *(gathered, activations, workspace, pixels),
        margin=CONTEXT + FRAGMENTS * total,
        host=host if recipe.parallel.cpu_offload else 0.0,
    )


@dataclass(frozen=True)
class _Held:
    """Bytes of a rank between steps. apart: of the weights, what no rank shares: a frozen tower's, quantised ones."""

    weights: float
    gradients: float
    optimizer: float
    average: float
    apart: float


def _held(model: VisionLanguageModel, recipe: TrainRecipe, world: int) -> _Held:
    shards = shard_ranks(recipe.parallel, world) if is_sharded(recipe, world) else 1
    weights = gradients = optimizer = average = apart = 0.0
    quantised = quantised_bytes(model, recipe.lora or model.config.lora)
    for name, parameter in model.named_parameters():
        is_apart = name.startswith("tower.") and not model.trains_tower
        size = parameter.numel() * (FULL if parameter.requires_grad else BYTES[recipe.precision])
        if is_apart or id(parameter) in quantised:
            apart += quantised.get(id(parameter), size)
            continue
        share = _rows(parameter, shards)
        weights += size * share
        if parameter.requires_grad:
            count = parameter.numel() * share
            gradients += FULL * count
            optimizer += state_bytes(recipe, name, parameter, count)
            average += FULL * count if recipe.ema is not None else 0
    return _Held(weights + apart, gradients, optimizer, average, apart)


def _pending(model: VisionLanguageModel, recipe: TrainRecipe, world: int) -> float:
    """Gradients of a rank that sees several micro-batches a step: whole and in fp32 until the last one, since they are
    exchanged once (parallel.sync_gradients)."""
    if recipe.parallel.reduce_every_batch or not (is_sharded(recipe, world) and accumulates(recipe, world)):
        return 0.0
    return float(FULL * _count(p for p in model.parameters() if p.requires_grad))


def accumulates(recipe: TrainRecipe, world: int) -> bool:
    """Whether a rank sees several micro-batches a step."""
    return recipe.packs_per_step > recipe.packs_per_batch * world


def quantised_bytes(model: VisionLanguageModel, lora: LoraConfig | None) -> dict[int, float]:
    """id(parameter) -> bytes, of weights that `lora.quantise` holds in 4 or 8 bits: values and their scales, fp32 for
    64 values (those in 8 bits for 256 of themselves where `double_quantise`), or for a row of int8."""
    if lora is None or lora.quantise is None:
        return {}
    found = {}
    for block in blocks(model, with_tower=False):
        for _, module in linears_of(block):
            linear = base(module)
            count = linear.in_features * linear.out_features
            scales = (1 + FULL / 256 if lora.double_quantise else FULL) * count / 64
            in_8_bits = count + FULL * linear.out_features
            found[id(linear.weight)] = in_8_bits if lora.quantise == "int8" else count / 2 + scales
    return found


def state_bytes(recipe: TrainRecipe, name: str, parameter: nn.Parameter, count: float) -> float:
    """Of `count` values of this parameter: two states of AdamW, or Muon's one; without the step's number."""
    if recipe.optimizer.kind == "muon" and is_inner_matrix(name, parameter):
        return FULL * count
    if recipe.optimizer.kind == "adamw_8bit" and count >= LEAST_8BIT and count % BLOCK_8BIT == 0:
        return 2 * (count + FULL * count / BLOCK_8BIT + FULL * 256)  # codes, scales, the table of 256 values
    return 2 * FULL * count


def _rows(parameter: nn.Parameter, shards: int) -> float:
    """The share of a parameter that rank 0 holds: it is cut by rows, and the first rank's are the most."""
    rows = parameter.shape[0] if parameter.ndim else 1
    return -(-rows // shards) / max(rows, 1)


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _gathered(model: VisionLanguageModel, recipe: TrainRecipe, world: int) -> float:
    """FSDP2's copies in the precision of computing: the root's all along, of blocks this one's and the next's (all,
    where they are kept for the backward pass); the gradients of two blocks as computed and as reduced, in fp32."""
    if not is_sharded(recipe, world):
        return 0.0
    compute, listed = BYTES[recipe.precision], list(blocks(model, with_tower=model.trains_tower))
    inside = {id(parameter) for block in listed for parameter in block.parameters()}
    outside = {id(parameter) for parameter in model.tower.parameters()} if not model.trains_tower else set()
    root = [p for p in model.parameters() if id(p) not in inside | outside]
    apart = quantised_bytes(model, recipe.lora or model.config.lora)
    whole = sorted((_count(p for p in block.parameters() if id(p) not in apart) for block in listed), reverse=True)
    learning = sorted((_count(p for p in block.parameters() if p.requires_grad) for block in listed), reverse=True)
    copies = sum(whole[:2] if recipe.parallel.reshard_after_forward else whole) * compute
    reduced = (sum(learning[:2]) + _count(p for p in root if p.requires_grad)) * (compute + FULL)
    return float(copies + _count(root) * compute + reduced)
