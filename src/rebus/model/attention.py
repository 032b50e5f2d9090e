"""Attention that never crosses a document, over padding-free packs; registered with transformers, no model patched.
A document may also be a picture, a frame or a window of one: towers attend both ways inside them.

`rebus_packed`: on the CPU, documents are laid into right-padded batches of similar length and each batch is one
causal SDPA: under causality no real token sees the padding behind it, so there is no mask and nothing is O(T^2).
Without causality a batch holds documents of one length, so there is no padding either.
On CUDA in half precision, variable-length flash attention runs on the pack as it is (varlen.py).
`rebus_reference`: one dense mask over the pack; slow, obviously right, for tests.

The indices are computed once a batch (`Documents`) and travel through the language model's forward as a keyword.
With `behind_cache` both are plain causal attention behind a cache, which is what decoding needs; with neither they
refuse, since a language model that swallows keywords would mix documents without a word.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from rebus.errors import ConfigError
from rebus.model import varlen

PACKED = "rebus_packed"
REFERENCE = "rebus_reference"

BUCKETS = torch.tensor(sorted(size for power in range(4, 31) for size in (2**power, 3 * 2 ** (power - 1))))
"""16, 24, 32, 48, 64, 96, ...: beyond 16 tokens at most a third of a padded batch is padding."""

MAX_QUERIES = 1024
"""Queries at a time behind a cache, so that no mask is larger than this many rows."""


@dataclass(frozen=True)
class Documents:
    """Where the documents of a pack of T tokens lie.

    bounds: int32 [D + 1]. max_length: tokens of the longest. slots: int64 [S], the token that each slot of the padded
    batches holds, -1 for padding. home: int64 [T], each token's slot. batches: (documents, length) of each padded
    batch; the batches stand one after another in the S slots. is_causal: tokens see none that come after them.
    """

    bounds: torch.Tensor
    max_length: int
    slots: torch.Tensor
    home: torch.Tensor
    batches: tuple[tuple[int, int], ...]
    is_causal: bool = True


def document_indices(bounds: torch.Tensor) -> torch.Tensor:
    """bounds [D + 1] -> int64 [T]: which document each token belongs to."""
    bounds = bounds.long()
    return torch.repeat_interleave(torch.arange(len(bounds) - 1, device=bounds.device), bounds.diff())


def documents_of(
    bounds: torch.Tensor, *, is_causal: bool = True, device: torch.device | str | None = None
) -> Documents:
    """Computes the layout of a pack from bounds int [D + 1]; empty documents are left out.

    Bounds on the host cost no wait for a GPU. device: where the layout is wanted; None: where bounds is.
    """
    device = bounds.device if device is None else device
    edges = bounds.cpu().long()
    starts, lengths = edges[:-1], edges.diff()
    starts, lengths = starts[lengths > 0], lengths[lengths > 0]
    sizes = BUCKETS[torch.searchsorted(BUCKETS, lengths)] if is_causal else lengths
    order = sizes.argsort(stable=True)
    groups = sizes[order].unique_consecutive(return_counts=True)[1].tolist()
    slots, batches = [], []
    for group in order.split(groups):
        first, length = starts[group, None], int(lengths[group].max())
        steps = torch.arange(length)
        slots.append((first + steps).masked_fill(steps >= lengths[group, None], -1).flatten())  # [documents * length]
        batches.append((len(group), length))
    flat = torch.cat(slots)
    real = (flat >= 0).nonzero().squeeze(1)
    home = torch.empty(len(real), dtype=torch.long)
    home[flat[real]] = real
    bounds_there, flat, home = (tensor.to(device, non_blocking=True) for tensor in (bounds.int(), flat, home))
    return Documents(bounds_there, int(lengths.max()), flat, home, tuple(batches), is_causal)


class _Pad(torch.autograd.Function):
    """Tokens [T, ...] -> slots [S, ...]. Padding slots hold token 0's value: finite, and seen by no real token."""

    @staticmethod
    def forward(context: Any, tokens: torch.Tensor, slots: torch.Tensor, home: torch.Tensor) -> torch.Tensor:
        context.save_for_backward(home)
        return tokens.index_select(0, slots.clamp_min(0))

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (home,) = context.saved_tensors
        return gradients[0].index_select(0, home), None, None  # a token has one home, so nothing is summed


class _Unpad(torch.autograd.Function):
    """Slots [S, ...] -> tokens [T, ...]; padding slots get gradient zero."""

    @staticmethod
    def forward(context: Any, padded: torch.Tensor, slots: torch.Tensor, home: torch.Tensor) -> torch.Tensor:
        context.save_for_backward(slots)
        return padded.index_select(0, home)

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (slots,) = context.saved_tensors
        gradient = gradients[0].index_select(0, slots.clamp_min(0))
        padding = (slots < 0).view(-1, *[1] * (gradient.ndim - 1))
        return gradient.masked_fill_(padding, 0), None, None


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # [1, heads, T, d]
    key: torch.Tensor,  # [1, kv_heads, T, d]
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    documents: Documents | None = None,
    behind_cache: bool = False,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention inside each document; transformers' attention signature; returns [1, T, heads, d], None.

    Raises: ConfigError where the model asks for what is not computed here (see `_refuse_unknown`).
    """
    _refuse_unknown(module, key, documents, behind_cache, options)
    if documents is None:
        return _behind_cache(query, key, value, scaling, attention_mask), None
    if query.device.type == "cuda" and query.dtype in (torch.float16, torch.bfloat16) and not dropout:
        queries, keys, values = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # each [T, heads, d]
        bounds, longest, is_causal = documents.bounds, documents.max_length, documents.is_causal
        output = varlen.attend(queries, keys, values, bounds, longest, is_causal=is_causal, scaling=scaling)
        return output.unsqueeze(0), None
    return _in_batches(query, key, value, documents, scaling, dropout).unsqueeze(0), None


@torch.compiler.disable  # its shapes differ with every batch: a compiled form would be made anew each time
def _in_batches(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    documents: Documents,
    scaling: float | None,
    dropout: float,
) -> torch.Tensor:
    """By padded batches, [T, heads, d]."""
    tokens = torch.cat([query, key, value], 1)[0].transpose(0, 1)  # [T, heads + 2 kv_heads, d]
    slots = _Pad.apply(tokens, documents.slots, documents.home)
    heads, kv_heads = query.shape[1], key.shape[1]
    outputs = []
    for batch, (num_documents, length) in zip(
        slots.split([number * length for number, length in documents.batches]), documents.batches, strict=True
    ):
        rows = batch.unflatten(0, (num_documents, length)).transpose(1, 2)
        queries, keys, values = rows.split([heads, kv_heads, kv_heads], dim=1)  # each [documents, heads, length, d]
        output = scaled_dot_product_attention(
            queries,
            keys,
            values,
            dropout_p=dropout,
            scale=scaling,
            is_causal=documents.is_causal,
            enable_gqa=heads != kv_heads,
        )
        outputs.append(output.transpose(1, 2).flatten(0, 1))
    return _Unpad.apply(torch.cat(outputs), documents.slots, documents.home)


def reference_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    documents: Documents | None = None,
    behind_cache: bool = False,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """As packed_attention, by one dense [T, T] mask."""
    _refuse_unknown(module, key, documents, behind_cache, options)
    if documents is None:
        return _behind_cache(query, key, value, scaling, attention_mask), None
    owner = document_indices(documents.bounds)
    mask = owner[:, None] == owner[None, :]
    if documents.is_causal:
        mask = mask.tril()
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    output = scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling)
    return output.transpose(1, 2), None


def _refuse_unknown(
    module: torch.nn.Module,
    key: torch.Tensor,
    documents: Documents | None,
    behind_cache: bool,
    options: dict[str, Any],
) -> None:
    """A sliding window is nothing as long as all there is to see fits into it."""
    name = type(module).__name__
    if documents is None and not behind_cache:
        raise ConfigError(
            f"{name} was not told where documents end: its model does not hand keywords on to attention, or was called "
            "by itself. Call the whole model, or set_attn_implementation('sdpa') first."
        )
    for unknown in ("softcap", "s_aux"):
        if options.get(unknown) is not None:
            raise ConfigError(f"{name} asks attention for '{unknown}', which Rebus does not compute.")
    longest = documents.max_length if documents is not None else key.shape[2]
    window = options.get("sliding_window")
    if window is not None and longest > window:
        raise ConfigError(
            f"{name} sees a sliding window of {window} tokens, which Rebus does not compute; a document has {longest}. "
            f"Set max_tokens to {window} at most."
        )


def _behind_cache(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    counts: torch.Tensor | None,
) -> torch.Tensor:
    """The last queries [B, heads, q, d] of sequences [B, kv_heads, k, d]: query i sees keys up to k - q + i, and of
    them only those that `counts`, bool [B, 1, 1 or q, k], lets it see, where it is given."""
    num_queries, num_keys = query.shape[2], key.shape[2]
    if num_queries == 1 or (num_queries == num_keys and counts is None):
        output = scaled_dot_product_attention(
            query, key, value, attn_mask=counts, scale=scaling, is_causal=num_queries > 1, enable_gqa=True
        )
        return output.transpose(1, 2)
    outputs = []
    for start in range(0, num_queries, MAX_QUERIES):
        some = query[:, :, start : start + MAX_QUERIES]
        seen = num_keys - num_queries + start
        mask = torch.ones(some.shape[2], num_keys, dtype=torch.bool, device=query.device).tril(seen)
        if counts is not None:
            mask = mask & counts.expand(-1, -1, num_queries, -1)[:, :, start : start + MAX_QUERIES]
        outputs.append(scaled_dot_product_attention(some, key, value, attn_mask=mask, scale=scaling, enable_gqa=True))
    return torch.cat(outputs, 2).transpose(1, 2)


def register() -> None:
    """Makes both names known to transformers (`attn_implementation="rebus_packed"`). Safe to call again.

    No mask function goes with them, so transformers builds no mask and looks at no position for one.
    """
    for name, function in ((PACKED, packed_attention), (REFERENCE, reference_attention)):
        AttentionInterface.register(name, function)
