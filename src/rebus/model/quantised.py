"""Frozen linear layers held in 4 bits (QLoRA, Dettmers et al. 2023) or 8 (LLM.int8, 2022) by bitsandbytes.

Weights are rounded from bfloat16, whatever they are loaded in, so that training and every later load hold the same.
"""

import sys
from copy import copy
from typing import Any

import torch
from torch import nn

from rebus.errors import ConfigError
from rebus.model.config import LoraConfig

COMPUTE = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def quantise(part: nn.Module, names: list[str], lora: LoraConfig) -> None:
    """Holds the named linear layers in `lora.quantise`, in place, and freezes all of the part.

    Layers whose weights are on the meta device wait for `hold`. Raises: ConfigError without bitsandbytes.
    """
    part.requires_grad_(False)
    for name in names:
        linear: Any = part.get_submodule(name)
        layer = _empty(linear, lora)
        layer.bias = linear.bias
        if not linear.weight.is_meta:
            hold(layer, linear.weight)
        part.set_submodule(name, layer.train(linear.training))


def hold(layer: Any, weight: torch.Tensor) -> None:
    """Puts a weight [out, in] of any float dtype into a quantised layer, rounded on the weight's device."""
    kind, exact = type(layer.weight), weight.detach().to(torch.bfloat16)
    if hasattr(layer.weight, "quant_type"):
        how = {"compress_statistics": layer.weight.compress_statistics, "quant_type": layer.weight.quant_type}
        layer.weight = kind(exact, requires_grad=False, module=layer, **how)._quantize(weight.device)
    else:
        layer.weight = kind(exact, requires_grad=False, has_fp16_weights=False)._quantize(weight.device)


def is_quantised(module: nn.Module) -> bool:
    """Whether a layer's weight is held in 4 or 8 bits, or waits to be."""
    if "bitsandbytes" not in sys.modules:  # then nothing is; importing it takes seconds
        return False
    bits = _bitsandbytes().nn
    return isinstance(module, bits.Linear4bit | bits.Linear8bitLt)


def quantised_parameters(model: nn.Module) -> set[nn.Parameter]:
    """The weights held in 4 or 8 bits. FSDP cannot cut them into rows: they go into its `ignored_params`, and every
    rank holds all of them."""
    layers: list[Any] = [layer for layer in model.modules() if is_quantised(layer)]
    return {layer.weight for layer in layers}


def exact_weight(layer: Any) -> torch.Tensor:
    """The weight [out, in] that a linear layer computes with, float32 where it is quantised."""
    if not is_quantised(layer):
        return layer.weight.detach()
    stored = layer.weight
    if hasattr(stored, "quant_state"):
        state = copy(stored.quant_state)
        state.dtype = torch.float32  # as products compute it; else it is rounded to the bfloat16 that it was made from
        return _bitsandbytes().functional.dequantize_4bit(stored.data, state)
    scales = stored.SCB if stored.SCB is not None else layer.state.SCB  # [out]; the first forward moves them
    return stored.data.float() * scales.float()[:, None] / 127


def plain_linear(layer: Any, dtype: torch.dtype) -> nn.Linear:
    """A linear layer of the exact weights in place of a quantised one."""
    with torch.device("meta"):
        plain = nn.Linear(layer.in_features, layer.out_features, bias=False)
    plain.weight = nn.Parameter(exact_weight(layer).to(dtype), requires_grad=False)
    plain.bias = layer.bias
    return plain


def _empty(linear: nn.Linear, lora: LoraConfig) -> Any:
    bits = _bitsandbytes().nn
    shape = {"bias": False, "device": "meta"}
    if lora.quantise == "int8":
        # 6.0 is LLM.int8's own bound: columns of activations above it are multiplied in 16 bits
        return bits.Linear8bitLt(
            linear.in_features, linear.out_features, has_fp16_weights=False, threshold=6.0, **shape
        ).requires_grad_(False)
    layer = bits.Linear4bit(
        linear.in_features,
        linear.out_features,
        compute_dtype=COMPUTE[lora.compute] if lora.compute else None,
        compress_statistics=lora.double_quantise,
        quant_type=lora.quantise,
        **shape,
    )
    layer.support_avx512bf16_for_cpu = False  # a packing that some CPUs have, which rounds otherwise than training
    return layer.requires_grad_(False)


def _bitsandbytes() -> Any:
    try:
        import bitsandbytes
    except ImportError as error:
        raise ConfigError(
            "`lora.quantise` needs bitsandbytes, which is not installed: pip install 'rebus[qlora]'. "
            "Or leave `quantise` out and train the adapters on weights of 16 bits."
        ) from error
    return bitsandbytes
