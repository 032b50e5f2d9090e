"""What blocks keep for their backward pass, tensor by tensor, and the most that one operation needs beside it.

Counted for our architectures as transformers and Rebus write them, attention by a kernel that keeps queries, keys,
values and its result. What torch.compile saves of it is not foretold.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

from torch import nn

from rebus.model.families import VisionLanguageModel
from rebus.model.loss import CHUNK
from rebus.model.native import NativeTower
from rebus.pictures.config import NativeConfig
from rebus.training.config import TrainRecipe
from rebus.training.flops import BEHIND, Work, linears_of
from rebus.training.parallel import blocks

FULL = 4
"""Bytes of fp32: of weights that learn, of their gradients, and of each optimizer state."""
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


NORMS: dict[Literal["layer", "rms"], type[nn.Module]] = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}
"""A LayerNorm keeps its input; torch's RMSNorm a copy in fp32 and its result before the weight, in fp32 too; those that
transformers writes out (`hub`) a copy in fp32 and that result in the precision of computing."""


@dataclass(frozen=True)
class BlockShape:
    """Of a transformer block, in channels. read, inner: results of the layers before attention and before the MLP's
    activation; query: of all heads; hidden: what the MLP's last layer reads. products: results of all matrix products
    in order. norm: see NORMS. extra: further copies of `read` and `hidden`."""

    width: int
    read: int
    query: int
    inner: int
    hidden: int
    products: tuple[int, ...]
    norm: Literal["layer", "rms", "hub"]
    norms_learn: bool
    reads_learn: bool
    behind_learn: bool
    extra: float
    dropped: float


def shape_of(block: nn.Module, *, is_quick: bool = False, is_turned: bool = False, dropout: float = 0.0) -> BlockShape:
    """is_quick: QuickGELU, whose sigmoid is kept too. is_turned: queries and keys are rotated beside their source.
    dropout: of adapters; each then keeps its own copy of its input, and a mask."""
    linears = [(name.split(".", 1)[0], name.rsplit(".", 1)[-1], module) for name, module in linears_of(block)]
    attention = [(leaf, module) for half, leaf, module in linears if "att" in half]
    mlp = [(leaf, module) for half, leaf, module in linears if "att" not in half]
    read, query = _sizes(attention)
    inner, hidden = _sizes(mlp)
    inside = {id(parameter) for _, _, module in linears for parameter in module.parameters()}
    dropped = sum(base(module).in_features for *_, module in linears if hasattr(module, "base_layer"))
    return BlockShape(
        width=base(mlp[-1][1]).out_features,
        read=read,
        query=query,
        inner=inner,
        hidden=hidden,
        products=tuple(size for *_, module in linears for size in _products(module)),
        norm=next((kind for kind, made in NORMS.items() if any(isinstance(m, made) for m in block.modules())), "hub"),
        norms_learn=any(p.requires_grad for p in block.parameters() if id(p) not in inside),
        reads_learn=_learn(module for _, leaf, module in linears if leaf not in BEHIND),
        behind_learn=_learn(module for _, leaf, module in linears if leaf in BEHIND),
        extra=(hidden if is_quick else 0) + (read * 2 / 3 if is_turned else 0),
        dropped=dropped if dropout else 0.0,
    )


def base(module: Any) -> Any:
    """A linear layer without its adapters."""
    return getattr(module, "base_layer", module)


def _sizes(half: list[tuple[str, Any]]) -> tuple[int, int]:
    before = sum(base(module).out_features for leaf, module in half if leaf not in BEHIND)
    return before, max(base(module).in_features for leaf, module in half if leaf in BEHIND)


def _products(module: Any) -> list[int]:
    if not hasattr(module, "base_layer"):
        return [module.out_features]
    adapters = [side[name].out_features for name in module.lora_A for side in (module.lora_A, module.lora_B)]
    return [module.base_layer.out_features, *adapters]


def _learn(modules: Iterable[nn.Module]) -> bool:
    return any(parameter.requires_grad for module in modules for parameter in module.parameters())


def kept(shape: BlockShape, compute: int, activations: str) -> float:
    """Bytes of a token that a block keeps until its backward pass."""
    if activations == "full":
        return compute * shape.width
    if activations == "selective":
        return compute * (shape.width + shape.query + sum(shape.products[::2]))
    norm = (compute if shape.norm == "layer" else FULL) * shape.width
    if shape.norm != "layer" and shape.norms_learn:  # what the weight is multiplied with
        norm += (FULL if shape.norm == "rms" else compute) * shape.width
    norm += compute * shape.width * shape.reads_learn
    is_gated = shape.inner > shape.hidden
    mlp = shape.inner + shape.hidden * is_gated + shape.hidden * shape.behind_learn
    return 2 * norm + compute * (shape.read + shape.query + mlp + shape.extra) + (compute + 1) * shape.dropped


def activations_of(model: VisionLanguageModel, recipe: TrainRecipe, work: Work) -> tuple[float, float]:
    """(bytes kept for the backward pass, the most that is needed beside them at one time) of a micro-batch."""
    compute = BYTES[recipe.precision]
    language = [shape_of(block, dropout=_dropout(recipe)) for block in blocks(model, with_tower=False)]
    first = _first_live(model)
    stored = sum(kept(shape, compute, recipe.activations) for shape in language[first:]) * work.tokens
    stored += _around(model, compute, work)
    again = max(kept(shape, compute, "off") for shape in language) * work.tokens if recipe.activations != "off" else 0
    passing = max(compute * 2 * (shape.inner + shape.width) for shape in language) * work.tokens
    tower, alone = _tower(model, recipe, work)
    head = model.head
    chunk = min(CHUNK, work.supervised) * head.out_features * (FULL + 2 * compute)
    product = head.weight.numel() * compute if head.weight.requires_grad and compute != FULL else 0
    return stored + tower, max(again + passing, chunk + product, alone)


def _dropout(recipe: TrainRecipe) -> float:
    return recipe.lora.dropout if recipe.lora is not None else 0.0


def _first_live(model: VisionLanguageModel) -> int:
    """The first block of the language model that a gradient reaches."""
    before = [model.language.get_input_embeddings(), model.connector, model.tower]
    if _learn(before):
        return 0
    listed = list(blocks(model, with_tower=False))
    return next((number for number, block in enumerate(listed) if _learn([block])), len(listed))


def _around(model: VisionLanguageModel, compute: int, work: Work) -> float:
    """The embeddings before pictures are laid in, rotary tables, the last norm's input in fp32 and its result before
    its weight; the gradients of hidden states at supervised positions and of the output layer, which the loss makes on
    its way forward; what the connector reads and makes."""
    width, head, settings = model.head.in_features, model.head, model.language.config.get_text_config()
    turned = 2 * compute * (getattr(settings, "head_dim", None) or settings.hidden_size // settings.num_attention_heads)
    ends = work.tokens * (width * (FULL + compute * (1 + _learn([model.language.get_decoder().norm]))) + turned)
    loss = FULL * (work.supervised * width + head.weight.numel() * head.weight.requires_grad)
    layers = [layer for layer in model.connector.mlp if isinstance(layer, nn.Linear)]
    sizes = sum(layer.in_features + layer.out_features for layer in layers)
    if isinstance(model.image, NativeConfig):
        per_row = sizes / model.image.merge_size**2 + model.connector.feature_width
    else:
        per_row = sizes * model.image.tokens_per_side**2
    return float(ends + loss + work.connected * per_row * compute * _learn([model.connector, model.tower]))


def _tower(model: VisionLanguageModel, recipe: TrainRecipe, work: Work) -> tuple[float, float]:
    """(kept, needed for a moment) by the tower: a frozen one keeps nothing, and works through one block at a time."""
    listed = [block for block in blocks(model) if block not in set(blocks(model, with_tower=False))]
    if not work.encoded or not listed:
        return 0.0, 0.0
    compute = BYTES[recipe.precision]
    is_native = isinstance(model.tower, NativeTower)
    tokens = work.encoded * (1 if is_native else model.tower.num_patches + getattr(model.tower, "num_special", 0))
    is_quick = (is_native and not model.tower.config.is_gated) or _is_quick(model.tower)
    dropout = _dropout(recipe)
    shapes = [shape_of(block, is_quick=is_quick, is_turned=is_native, dropout=dropout) for block in listed]
    moment = max(shape.read + 2 * shape.query + 2 * shape.inner + 3 * shape.width for shape in shapes)
    if not model.trains_tower:
        return 0.0, moment * compute * tokens
    first = next(number for number, block in enumerate(listed) if _learn([block]))
    stored = sum(kept(shape, compute, recipe.activations) for shape in shapes[first:]) * tokens
    if compute != FULL:  # the pixels that the first layer read, no longer in fp32
        stored += work.encoded * prod(model.image.row_shape) * compute
    again = max(kept(shape, compute, "off") for shape in shapes) if recipe.activations != "off" else 0.0
    return stored, (again + moment * compute) * tokens


def _is_quick(tower: Any) -> bool:
    settings = [getattr(module, "config", None) for module in tower.modules()]
    return any(getattr(one, "hidden_act", None) == "quick_gelu" for one in settings)
