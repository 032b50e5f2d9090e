"""Model FLOPs of a micro-batch: what its products cost once, however they are computed. Padding counts nothing, causal
attention half, vocabulary logits only where they are supervised, and what is frozen only what it does (docs/budget.md).

A product of [n, a] by [a, b] is 2 n a b. Norms, activations, rotations and softmax count nothing, as is usual
(Narayanan et al. 2021, appendix; Chowdhery et al. 2022, appendix B).
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from rebus.batches.batch import Batch
from rebus.log import say
from rebus.model.families import VisionLanguageModel
from rebus.model.native import NativeTower
from rebus.pictures.config import NativeConfig
from rebus.towers.fused import FusedTower
from rebus.towers.transformer import TransformerTower

Activations = Literal["off", "full", "selective"]
BEHIND = frozenset({"o_proj", "out_proj", "proj", "dense", "down_proj", "fc2", "weights_out"})
"""Linear layers that read what the others of their half of a block make: attention's output, the inner width."""


@dataclass(frozen=True)
class Work:
    """What there is to compute on, summed over any number of micro-batches.

    tokens: of documents. pairs: (query, key) of causal attention, n (n + 1) / 2 of a stretch of n. supervised: tokens.
    encoded, connected: rows (crops, or native patches) that pass the tower and the connector; cached features pass
    only the latter. frame_pairs, window_pairs: of native patches that see one another, both ways.
    """

    tokens: float = 0.0
    pairs: float = 0.0
    supervised: float = 0.0
    encoded: float = 0.0
    connected: float = 0.0
    frame_pairs: float = 0.0
    window_pairs: float = 0.0


def work_of(batch: Batch, *, merge_size: int = 1, window: int = 0) -> Work:
    """batch: on the host, as the loader makes it: nothing here waits for a GPU. merge_size, window: of a native tower
    (NativeTowerConfig)."""
    lengths = batch.bounds.diff().double()
    rows = len(batch.pixels)
    frame_pairs = window_pairs = 0.0
    if batch.pixels.ndim == 2:  # native patches
        frames, heights, widths = batch.grids.double().unbind(1)
        frame_pairs = float((frames * (heights * widths) ** 2).sum())
        if window:
            down, across = (_squares(sides / merge_size, window) for sides in (heights, widths))
            window_pairs = float((frames * down * across).sum()) * merge_size**4
    return Work(
        tokens=float(lengths.sum()),
        pairs=float((lengths * (lengths + 1)).sum() / 2),
        supervised=batch.num_supervised,
        encoded=0 if batch.pixels.ndim == 3 else rows,  # three axes: features that the tower made before
        connected=rows,
        frame_pairs=frame_pairs,
        window_pairs=window_pairs,
    )


def _squares(sides: torch.Tensor, window: int) -> torch.Tensor:
    """The squared lengths of the pieces that windows cut a side into, summed: whole ones and the rest."""
    return (sides // window) * window**2 + (sides % window) ** 2


Rates = Mapping[str, float]
"""FLOPs for each unit of a field of Work."""


@dataclass(frozen=True)
class Flops:
    """What a model's work costs. again: what activation checkpointing computes a second time, which is no model FLOP;
    with it a share of the peak is HFU, without it MFU. merge_size, window: of a native tower."""

    forward: Rates
    backward: Rates
    again: Rates
    merge_size: int = 1
    window: int = 0

    def work(self, batch: Batch) -> Work:
        return work_of(batch, merge_size=self.merge_size, window=self.window)

    def of(self, batch: Batch) -> float:
        """Model FLOPs of forward and backward over a micro-batch, counted on the host."""
        return self.model(self.work(batch))

    def model(self, work: Work) -> float:
        return _cost(self.forward, work) + _cost(self.backward, work)

    def recomputed(self, work: Work) -> float:
        return _cost(self.again, work)


def _cost(rates: Rates, work: Work) -> float:
    return sum(rates.get(field.name, 0.0) * getattr(work, field.name) for field in fields(work))


def flops_of(model: VisionLanguageModel, activations: Activations = "off") -> Flops:
    """Reads the costs off a model whose `requires_grad` says what learns (parts.freeze_all_but), on any device, meta
    too, sharded or not. activations: as in the recipe."""
    walk = _Walk(activations)
    walk.tower(model.tower, model.image.row_shape)
    walk.connector(model)
    walk.language(model.language)
    settings = model.tower.config if isinstance(model.tower, NativeTower) else None
    sizes = (settings.merge_size, settings.window) if settings else (1, 0)
    return Flops(dict(walk.forward), dict(walk.backward), dict(walk.again), *sizes)


@dataclass(frozen=True)
class _Place:
    """Where a block stands: its tokens and its pairs for each unit of a field of Work."""

    unit: str
    pair_unit: str
    tokens: float = 1.0
    pairs: float = 1.0


class _Walk:
    """Goes through a model in the order of its forward pass and adds up rates. is_live: whether a gradient has to come
    back to this place, since something before it learns."""

    def __init__(self, activations: Activations) -> None:
        self.activations, self.is_live = activations, False
        self.forward: dict[str, float] = defaultdict(float)
        self.backward: dict[str, float] = defaultdict(float)
        self.again: dict[str, float] = defaultdict(float)

    def add(self, unit: str, forward: float, backward: float) -> None:
        self.forward[unit] += forward
        self.backward[unit] += backward

    def tower(self, tower: Any, row_shape: tuple[int, ...]) -> None:
        """Without gradients the tower runs under no_grad, so that a frozen one costs its forward pass alone."""
        if isinstance(tower, FusedTower):
            lives = []
            for part in tower.parts:
                self.is_live = False
                self.tower(part, row_shape)
                lives.append(self.is_live)
            self.is_live = any(lives)
        elif isinstance(tower, NativeTower):
            self._native(tower)
        elif isinstance(tower, TransformerTower):
            self._transformer(tower)
        else:
            self.add("encoded", *_counted(tower, row_shape))
            self.is_live = _learns(tower.parameters())

    def _native(self, tower: NativeTower) -> None:
        self.project("encoded", tower.patch_embed.proj)
        for number, block in enumerate(tower.blocks):
            is_full = not tower.config.window or number in tower.config.full_blocks
            self.block(block, _Place("encoded", "frame_pairs" if is_full else "window_pairs"), tower.width)

    def _transformer(self, tower: Any) -> None:
        count, model = tower.num_patches + tower.num_special, tower.model
        cut: Any = next(module for module in model.embeddings.modules() if isinstance(module, nn.Conv2d | nn.Linear))
        once = 2.0 * cut.weight.numel() * tower.num_patches
        self.add("encoded", once, once * _learns([cut.weight]))
        layers = model.encoder.layer if hasattr(model.encoder, "layer") else model.encoder.layers
        inner = {id(parameter) for parameter in layers.parameters()}
        self.is_live = _learns(one for one in model.parameters() if id(one) not in inner)
        for block in layers:
            self.block(block, _Place("encoded", "encoded", count, count**2), tower.width)

    def connector(self, model: VisionLanguageModel) -> None:
        image, connector = model.image, model.connector
        is_native = isinstance(image, NativeConfig)
        tokens = 1 / image.merge_size**2 if isinstance(image, NativeConfig) else image.tokens_per_side**2
        self.is_live |= _learns((connector.ln_q if is_native else connector.norm).parameters())
        for layer in connector.mlp:
            if isinstance(layer, nn.Linear):
                self.is_live = self.project("connected", layer, times=tokens)
        self.is_live |= _learns(connector.parameters())

    def language(self, language: Any) -> None:
        settings = language.config.get_text_config()
        heads = settings.num_attention_heads
        width = heads * (getattr(settings, "head_dim", None) or settings.hidden_size // heads)
        decoder = language.get_decoder()
        self.is_live |= _learns(language.get_input_embeddings().parameters())
        for block in decoder.layers:
            self.block(block, _Place("tokens", "pairs"), width)
        if any(parameter.ndim > 2 for parameter in decoder.layers.parameters()):
            say("FLOPs leave out the experts of this language model: its MFU will read too low.")
        self.is_live |= _learns(decoder.norm.parameters())
        self.project("supervised", language.get_output_embeddings())

    def block(self, block: nn.Module, place: _Place, width: int) -> None:
        """A transformer block: attention over `width` channels of all heads, then the MLP, each behind its norm."""
        linears = list(linears_of(block))
        inside = {id(parameter) for _, module in linears for parameter in module.parameters()}
        norms_learn = _learns(one for one in block.parameters() if id(one) not in inside)
        was_live, stream = self.is_live, self.is_live
        for is_attention in (True, False):
            half = [(name, module) for name, module in linears if ("att" in name.split(".", 1)[0]) == is_attention]
            self.is_live = stream or norms_learn
            first = [(name.rsplit(".", 1)[-1], module) for name, module in half]
            made = {
                leaf: self.project(place.unit, module, times=place.tokens)
                for leaf, module in first
                if leaf not in BEHIND
            }
            if is_attention:
                self.attend(place, width, made)
            self.is_live = any(made.values())
            for _, module in (one for one in first if one[0] in BEHIND):
                self.is_live = self.project(place.unit, module, times=place.tokens)
            stream = stream or self.is_live
        self.is_live = stream
        if stream or was_live:
            self._recompute([module for _, module in linears], place, width)

    def attend(self, place: _Place, width: int, made: Mapping[str, bool]) -> None:
        """Two products forward. Backward one each for queries, keys and values that something learns before, and one
        for the weights that queries and keys share; what a fused kernel computes again is its own business."""
        query, key, value = (_is_made(letter, made) for letter in "qkv")
        num_backward = query + key + value + (query or key)
        self.add(place.pair_unit, 4.0 * width * place.pairs, 2.0 * width * place.pairs * num_backward)

    def project(self, unit: str, module: Any, *, times: float = 1.0) -> bool:
        """A linear layer, or one with adapters beside it. Returns: whether a gradient comes back to its result."""
        if hasattr(module, "base_layer"):
            was_live, lives = self.is_live, [self.project(unit, module.base_layer, times=times)]
            for name in module.lora_A:
                self.is_live = was_live
                self.is_live = self.project(unit, module.lora_A[name], times=times)
                lives.append(self.project(unit, module.lora_B[name], times=times))
                self.is_live = was_live
            return any(lives)
        once = 2.0 * module.in_features * module.out_features * times
        self.add(unit, once, once * self.is_live + once * _learns([module.weight]))
        return self.is_live or _learns(module.parameters())

    def _recompute(self, linears: list[Any], place: _Place, width: int) -> None:
        """`full` runs a block again; `selective` every second product of it (parallel.recompute)."""
        if self.activations == "off":
            return
        again = linears if self.activations == "full" else linears[1::2]
        sizes = (getattr(one, "base_layer", one) for one in again)
        self.again[place.unit] += sum(2.0 * one.in_features * one.out_features for one in sizes) * place.tokens
        if self.activations == "full":
            self.again[place.pair_unit] += 4.0 * width * place.pairs


def _is_made(letter: str, made: Mapping[str, bool]) -> bool:
    """Whether a gradient comes back to queries (`q`), keys or values; layers that make several are named for all."""
    return any(live for leaf, live in made.items() if leaf.startswith(letter) or leaf.startswith("qkv"))


def linears_of(block: nn.Module, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Linear layers by name in the block; one with adapters is one."""
    for name, child in block.named_children():
        if isinstance(child, nn.Linear) or hasattr(child, "base_layer"):
            yield prefix + name, child
        else:
            yield from linears_of(child, f"{prefix}{name}.")


def _learns(parameters: Iterable[nn.Parameter]) -> bool:
    return any(parameter.requires_grad for parameter in parameters)


def _counted(tower: nn.Module, row_shape: tuple[int, ...]) -> tuple[float, float]:
    """FLOPs (forward, backward) of one crop through a convolutional tower, counted on the meta device."""
    shapes = {
        name: torch.empty(tensor.shape, device="meta", requires_grad=tensor.requires_grad)
        for name, tensor in tower.named_parameters()
    }
    pixels = torch.empty(1, *row_shape, device="meta")
    with FlopCounterMode(display=False) as forward:
        features = torch.func.functional_call(tower, shapes, (pixels,))
    if not features.requires_grad:
        return float(forward.get_total_flops()), 0.0
    with FlopCounterMode(display=False) as backward:
        features.sum().backward()
    return float(forward.get_total_flops()), float(backward.get_total_flops())
