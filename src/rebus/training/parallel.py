"""The model over the processes that train it (FSDP2): blocks sharded, computing in the recipe's precision while the
weights that learn stay fp32; recomputing and compiling where the recipe says so.

One process in fp32 is left as it is. A frozen tower is never sharded: it is small, and a rank that meets only text
does not run it.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from rebus.mesh import Mesh, device_mesh
from rebus.model.families import VisionLanguageModel
from rebus.model.quantised import quantised_parameters
from rebus.training.config import ParallelConfig, TrainRecipe

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
BLOCK_LISTS = ("layers", "blocks", "layer")
"""How language models and towers name their list of blocks."""


def is_sharded(recipe: TrainRecipe, world: int) -> bool:
    """Whether FSDP2 holds the model: for several ranks, for one that computes in less than fp32 or offloads."""
    return world > 1 or needs_group(recipe)


def needs_group(recipe: TrainRecipe) -> bool:
    """Whether even a process alone needs a process group."""
    return recipe.precision != "fp32" or recipe.parallel.cpu_offload


def distribute(model: VisionLanguageModel, recipe: TrainRecipe, mesh: Mesh) -> None:
    """Makes a model whose `requires_grad` is set ready to train, in place. Its parameters may be on the meta device:
    they then wait to be filled, each rank its own rows."""
    recompute(model, recipe.activations)
    if recipe.compile:
        for block in blocks(model):
            block.compile()
    lower_frozen(model, DTYPES[recipe.precision])
    if is_sharded(recipe, mesh.world):
        shard(model, recipe.parallel, mesh, recipe.device, DTYPES[recipe.precision])


def blocks(model: VisionLanguageModel, *, with_tower: bool = True) -> Iterator[nn.Module]:
    """The repeated blocks of language model and tower, in order."""
    parts = [model.tower, model.language] if with_tower else [model.language]
    for part in parts:
        for name, module in part.named_modules():
            if isinstance(module, nn.ModuleList) and name.rsplit(".", 1)[-1] in BLOCK_LISTS:
                yield from module


def lower_frozen(model: nn.Module, dtype: torch.dtype) -> None:
    """Weights that do not learn need no fp32 master: they are held in the precision that they compute in."""
    for parameter in model.parameters():
        if not parameter.requires_grad and parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)


def shard(model: VisionLanguageModel, config: ParallelConfig, mesh: Mesh, device: str, dtype: torch.dtype) -> None:
    """FSDP2 on every block, then on the rest. Gradients are summed over ranks, not averaged (contract 3)."""
    ranks = device_mesh(mesh, device, shard_ranks=shard_ranks(config, mesh.world))
    frozen_tower = set() if model.trains_tower else set(model.tower.parameters())
    whole = frozen_tower | quantised_parameters(model)  # few bits cannot be cut into rows: every rank holds all
    for parameter in model.parameters():
        if parameter not in whole:  # FSDP cuts plain rows of memory; convolutions may lie channels last
            parameter.data = parameter.data.contiguous()
    wrap = partial(_wrap, ranks=ranks, config=config, dtype=dtype, ignored=whole)
    for block in blocks(model, with_tower=model.trains_tower):
        wrap(block, config.reshard_after_forward)
    wrap(model, False, casts=True)  # its weights are needed again as soon as the backward pass begins
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no other way to leave sums undivided


def _wrap(
    module: nn.Module,
    reshard: bool,
    casts: bool = False,
    *,
    ranks: DeviceMesh,
    config: ParallelConfig,
    dtype: torch.dtype,
    ignored: set[nn.Parameter],
) -> None:
    """casts: what the module is called with; between blocks nothing is, so that fp32 rotary tables stay it."""
    policy = None
    if dtype != torch.float32:
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=casts)
    fully_shard(
        module,
        mesh=ranks,
        reshard_after_forward=reshard,
        mp_policy=policy or MixedPrecisionPolicy(),
        offload_policy=CPUOffloadPolicy() if config.cpu_offload else OffloadPolicy(),
        ignored_params=ignored,
    )


def shard_ranks(config: ParallelConfig, world: int) -> int:
    """How many ranks share one copy of the model."""
    return {"shard": world, "replicate": 1, "hybrid": config.shard_ranks or 1}[config.kind]


def sync_gradients(model: nn.Module, wanted: bool) -> None:
    """Whether the next backward pass sums gradients over ranks; of one that does not, each rank keeps them whole."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(wanted)


def recompute(model: VisionLanguageModel, kind: str) -> None:
    """What the backward pass computes again: `off` nothing, `full` whole blocks, `selective` all but the results of
    attention and of every second matrix product (as torchtitan chooses), which cost most."""
    if kind == "off":
        return
    model.checkpoint_activations()
    if kind == "selective":
        for module in model.modules():
            if getattr(module, "gradient_checkpointing", False) and hasattr(module, "_gradient_checkpointing_func"):
                module._gradient_checkpointing_func = partial(  # type: ignore[assignment]
                    torch.utils.checkpoint.checkpoint, use_reentrant=False, context_fn=_keep_products
                )


def _keep_products() -> Any:
    return create_selective_checkpoint_contexts(_Policy())


class _Policy:
    """Keeps the results of scaled dot product attention and of every second matrix product of a block."""

    def __init__(self) -> None:
        self.products = {False: 0, True: 0}  # in the forward pass, and when it is run again

    def __call__(self, context: Any, operation: Any, *arguments: Any, **options: Any) -> CheckpointPolicy:
        name = str(getattr(operation, "overloadpacket", operation))  # operations of a higher order have none
        if name in _PRODUCTS:
            self.products[context.is_recompute] += 1
            return _save(self.products[context.is_recompute] % 2 == 1)
        return _save(name in _ATTENTION)


def _save(wanted: bool) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if wanted else CheckpointPolicy.PREFER_RECOMPUTE


_PRODUCTS = {"aten.mm", "aten.addmm"}
_ATTENTION = {
    "aten._scaled_dot_product_flash_attention",
    "aten._scaled_dot_product_efficient_attention",
    "aten._scaled_dot_product_flash_attention_for_cpu",
    "aten._scaled_dot_product_cudnn_attention",
    "torch_attn._varlen_attn",  # torch.nn.attention.varlen
    "flash_attn._flash_attn_varlen_forward",  # flash-attn 2
    "flash_attn_3._flash_attn_forward",
}
