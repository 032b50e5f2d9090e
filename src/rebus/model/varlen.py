"""Variable-length attention on CUDA in half precision: flash-attn 3 (which runs on Hopper alone) or flash-attn 2,
where installed, else torch's own kernel. No padding, no mask.

The choice and the arguments are tested with stand-ins for the kernels; none of this has run on a GPU yet.
"""

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import torch

KERNELS: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {}
"""`here`: the function that this machine runs, and its parameters' names; filled at the first use."""


def attend(
    query: torch.Tensor,  # [T, heads, d]
    key: torch.Tensor,  # [T, kv_heads, d]
    value: torch.Tensor,
    bounds: torch.Tensor,  # int32 [D + 1], on the device
    longest: int,
    *,
    is_causal: bool,
    scaling: float | None,
) -> torch.Tensor:
    """Attention inside each document of a pack, [T, heads, d]. scaling: of the logits; None: 1 / sqrt(d)."""
    name = _choice()
    function, known = KERNELS[name]
    queries, keys, values = query.contiguous(), key.contiguous(), value.contiguous()
    arrange = _flash_arguments if "cu_seqlens_q" in known else _torch_arguments
    output = function(**arrange(known, queries, keys, values, bounds, longest, is_causal, scaling))
    return output[0] if isinstance(output, tuple) else output  # flash-attn 3 returned logits' sums beside, at first


@torch.compiler.assume_constant_result
def _choice() -> str:
    """The key of this machine's kernel in KERNELS, looked for once a process, and not by the compiler."""
    if not KERNELS:
        function = _quickest(torch.cuda.get_device_capability()[0])
        KERNELS["here"] = function, tuple(inspect.signature(function).parameters)
    return "here"


def _quickest(capability: int) -> Callable[..., Any]:
    for name, is_able in (("flash_attn_interface", capability == 9), ("flash_attn", capability >= 8)):
        if is_able:
            try:
                return importlib.import_module(name).flash_attn_varlen_func
            except ImportError:  # not there, or built for another torch
                continue
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn


def _flash_arguments(
    known: tuple[str, ...],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: torch.Tensor,
    longest: int,
    is_causal: bool,
    scaling: float | None,
) -> dict[str, Any]:
    """Of flash_attn_varlen_func, the same in both versions; grouped queries are its own business."""
    return {
        "q": query,
        "k": key,
        "v": value,
        "cu_seqlens_q": bounds,
        "cu_seqlens_k": bounds,
        "max_seqlen_q": longest,
        "max_seqlen_k": longest,
        "softmax_scale": scaling,
        "causal": is_causal,
    }


def _torch_arguments(
    known: tuple[str, ...],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bounds: torch.Tensor,
    longest: int,
    is_causal: bool,
    scaling: float | None,
) -> dict[str, Any]:
    """Of torch.nn.attention.varlen.varlen_attn, which changed between 2.10 and 2.13: what a version cannot do itself
    is done to its inputs."""
    options: dict[str, Any] = {"is_causal": is_causal}
    if "window_size" in known:
        options = {"window_size": (-1, 0 if is_causal else -1)}
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and "enable_gqa" in known:
        options["enable_gqa"] = True
    elif groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    if scaling is not None and "scale" in known:
        options["scale"] = scaling
    elif scaling is not None:
        query = query * (scaling * query.shape[-1] ** 0.5)
    places = {"cu_seq_q": bounds, "cu_seq_k": bounds, "max_q": longest, "max_k": longest}
    return {"query": query, "key": key, "value": value, **places, **options}
