"""The layout of packs, the ways to attend in them, and the behaviour behind a cache."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rebus.model import attention, varlen
from rebus.model.attention import document_indices, documents_of, packed_attention, reference_attention
from tiny_models import document_positions

lengths_of_documents = st.lists(st.integers(0, 70), min_size=1, max_size=12).filter(any)


def bounds_of(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int()


@given(lengths_of_documents)
def test_every_token_has_one_home_in_its_own_document(lengths: list[int]):
    bounds = bounds_of(lengths)
    documents = documents_of(bounds)
    assert torch.equal(documents.slots[documents.home], torch.arange(sum(lengths)))
    assert len(documents.slots) == sum(number * length for number, length in documents.batches)
    assert sum(number for number, _ in documents.batches) == sum(length > 0 for length in lengths)
    owners, start = document_indices(bounds), 0
    for number, length in documents.batches:
        for row in documents.slots[start : start + number * length].reshape(number, length):
            tokens = row[row >= 0]
            assert len(set(owners[tokens].tolist())) == 1
            assert torch.equal(row[: len(tokens)], tokens)  # padding is on the right
        start += number * length


@given(lengths_of_documents)
def test_positions_restart(lengths: list[int]):
    expected = [position for length in lengths for position in range(length)]
    assert document_positions(bounds_of(lengths)).tolist() == expected


def attend(function: Callable[..., Any], inputs: list[torch.Tensor], documents: attention.Documents) -> torch.Tensor:
    return function(torch.nn.Identity(), *inputs, None, scaling=0.3, documents=documents)[0]


@given(lengths_of_documents, st.booleans())
def test_packed_equals_reference(lengths: list[int], is_causal: bool):
    torch.manual_seed(0)
    documents, total = documents_of(bounds_of(lengths), is_causal=is_causal), sum(lengths)
    inputs = [torch.randn(1, heads, total, 8, requires_grad=True) for heads in (4, 2, 2)]
    outputs = [attend(function, inputs, documents) for function in (packed_attention, reference_attention)]
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)
    weights = torch.randn_like(outputs[0])
    ours, theirs = (torch.autograd.grad((output * weights).sum(), inputs) for output in outputs)
    for gradient, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-5)


@given(lengths_of_documents)
def test_both_ways_nothing_is_padded(lengths: list[int]):
    documents = documents_of(bounds_of(lengths), is_causal=False)
    assert len(documents.slots) == sum(lengths)
    assert documents.max_length == max(lengths)
    assert sorted(length for number, length in documents.batches for _ in range(number)) == sorted(
        filter(None, lengths)
    )


@pytest.mark.parametrize("is_causal", [True, False])
def test_each_document_alone_by_plain_softmax(is_causal: bool):
    """Documents of one token among them; against attention written out."""
    torch.manual_seed(0)
    lengths = [1, 5, 1, 17, 1]
    inputs = [torch.randn(1, heads, sum(lengths), 8) for heads in (4, 2, 2)]
    output = attend(packed_attention, inputs, documents_of(bounds_of(lengths), is_causal=is_causal))
    start = 0
    for length in lengths:
        query, key, value = (tensor[0, :, start : start + length] for tensor in inputs)
        for head in range(4):
            logits = 0.3 * query[head] @ key[head // 2].T
            if is_causal:
                logits = logits.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
            wanted = logits.softmax(-1) @ value[head // 2]
            torch.testing.assert_close(output[0, start : start + length, head], wanted, rtol=1e-5, atol=1e-5)
        start += length


@pytest.mark.parametrize("is_causal", [True, False])
def test_half_precision_on_the_cpu(is_causal: bool):
    """bfloat16 keeps 8 bits: off by some 2**-8 of the largest value, and no NaN from padding."""
    torch.manual_seed(0)
    lengths = [1, 40, 7, 300, 22]
    inputs = [torch.randn(1, heads, sum(lengths), 16, requires_grad=True) for heads in (4, 2, 2)]
    halves = [tensor.detach().bfloat16().requires_grad_() for tensor in inputs]
    documents = documents_of(bounds_of(lengths), is_causal=is_causal)
    wanted, output = attend(packed_attention, inputs, documents), attend(packed_attention, halves, documents)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.float(), wanted, rtol=0.02, atol=0.02)
    expected = torch.autograd.grad(wanted.square().sum(), inputs)
    gradients = torch.autograd.grad(output.float().square().sum(), halves)
    for gradient, exact in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient.float(), exact, rtol=0.05, atol=0.02 * float(exact.abs().max()))


def decoder(num_layers: int = 2) -> Any:
    """A tiny Llama's layers with Rebus's attention, every weight lively."""
    from transformers import LlamaConfig, LlamaModel

    attention.register()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=11,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
    )
    return LlamaModel._from_config(config, attn_implementation=attention.PACKED)


def run(model: Any, lengths: list[int]) -> torch.Tensor:
    torch.manual_seed(1)
    bounds = bounds_of(lengths)
    embeddings = torch.randn(1, sum(lengths), 32)
    positions = document_positions(bounds)[None]
    output = model(inputs_embeds=embeddings, position_ids=positions, use_cache=False, documents=documents_of(bounds))
    return output.last_hidden_state


PACKS = [[5, 30, 1], [9, 2], [40, 3, 3, 8, 70], [17, 17, 17, 17]]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch's compiler looks at it
def test_compiled_decoder_equals_eager():
    """Packs of other numbers and lengths of documents too, without being compiled for each of them anew."""
    from torch._dynamo.testing import CompileCounterWithBackend

    model, counter = decoder(1), CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=counter)
    counts = []
    for lengths in PACKS:
        wanted, output = run(model, lengths), run(compiled, lengths)
        torch.testing.assert_close(output, wanted, rtol=1e-5, atol=1e-5)
        gradients, expected = (
            torch.autograd.grad(states.square().sum(), list(model.parameters()), allow_unused=True)
            for states in (output, wanted)
        )
        for gradient, exact in zip(gradients, expected, strict=True):
            if exact is not None:
                torch.testing.assert_close(gradient, exact, rtol=1e-4, atol=1e-4)
        counts.append(counter.frame_count)
    torch._dynamo.reset()
    assert counts[0] > 0
    assert counts[1] == counts[-1], counts  # the second makes lengths a variable


def test_checkpointed_decoder_equals_plain():
    found = []
    for is_checkpointed in (False, True):
        model = decoder().train()
        if is_checkpointed:
            model.gradient_checkpointing_enable()
        layers = list(model.layers.parameters())
        found.append(torch.autograd.grad(run(model, PACKS[2]).square().sum(), layers))
    for gradient, exact in zip(*found, strict=True):
        torch.testing.assert_close(gradient, exact)


@pytest.mark.parametrize("num_queries", [1, 3, 10])
def test_behind_a_cache_the_last_queries_see_all_before_them(num_queries: int):
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, heads, 10, 8) for heads in (4, 2, 2))
    whole, _ = packed_attention(torch.nn.Identity(), query, key, value, None, behind_cache=True)
    tail, _ = packed_attention(torch.nn.Identity(), query[:, :, -num_queries:], key, value, None, behind_cache=True)
    torch.testing.assert_close(tail, whole[:, -num_queries:], rtol=1e-5, atol=1e-5)


def test_behind_a_cache_a_mask_hides_keys_on_top(monkeypatch: pytest.MonkeyPatch):
    """Also where queries are taken a few at a time."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, heads, 10, 8) for heads in (4, 2, 2))
    counts = torch.ones(2, 1, 1, 10, dtype=torch.bool)
    counts[1, :, :, :4] = False
    monkeypatch.setattr(attention, "MAX_QUERIES", 2)
    tail, _ = packed_attention(torch.nn.Identity(), query[:, :, -5:], key, value, counts, behind_cache=True)
    first, _ = packed_attention(torch.nn.Identity(), query[:1], key[:1], value[:1], None, behind_cache=True)
    second, _ = packed_attention(
        torch.nn.Identity(), query[1:, :, 4:], key[1:, :, 4:], value[1:, :, 4:], None, behind_cache=True
    )
    torch.testing.assert_close(tail, torch.cat([first[:, -5:], second[:, -5:]]), rtol=1e-5, atol=1e-5)


def flash_stand_in(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    softmax_scale: float | None = None,
    causal: bool = False,
) -> torch.Tensor:
    """The names that flash-attn 2.8 and 3 share, computed plainly: [T, heads, d]."""
    assert (q.ndim, cu_seqlens_q.dtype, max_seqlen_q) == (3, torch.int32, int(cu_seqlens_q.diff().max()))
    assert cu_seqlens_k is cu_seqlens_q
    assert max_seqlen_k == max_seqlen_q
    documents = documents_of(cu_seqlens_q, is_causal=causal)
    heads = [tensor.transpose(0, 1).unsqueeze(0) for tensor in (q, k, v)]
    return reference_attention(torch.nn.Identity(), *heads, None, scaling=softmax_scale, documents=documents)[0][0]


def new_torch(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> torch.Tensor:
    """varlen_attn of torch 2.13."""
    assert enable_gqa == (query.shape[1] != key.shape[1])
    assert window_size in ((-1, -1), (-1, 0))
    causal = window_size == (-1, 0)
    return flash_stand_in(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale, causal)


def old_torch(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    is_causal: bool = False,
) -> torch.Tensor:
    """varlen_attn of torch 2.10: no scale, no grouped queries."""
    assert query.shape == key.shape == value.shape
    return flash_stand_in(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, None, is_causal)


@functools.wraps(flash_stand_in)
def flash_with_sums(**arguments: Any) -> tuple[torch.Tensor, None]:
    """The first flash-attn 3."""
    return flash_stand_in(**arguments), None


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize("kernel", [flash_stand_in, flash_with_sums, new_torch, old_torch])
def test_kernels_are_called_by_their_own_names(
    monkeypatch: pytest.MonkeyPatch, kernel: Callable[..., Any], is_causal: bool
):
    """The arguments that CUDA kernels would get mean the same attention; kernels are stand-ins of their signatures."""
    torch.manual_seed(0)
    documents = documents_of(bounds_of([3, 1, 9]), is_causal=is_causal)
    query, key, value = (torch.randn(13, heads, 8) for heads in (4, 2, 2))
    monkeypatch.setitem(varlen.KERNELS, "here", (kernel, tuple(inspect.signature(kernel).parameters)))
    bounds, longest = documents.bounds, documents.max_length
    output = varlen.attend(query, key, value, bounds, longest, is_causal=is_causal, scaling=0.3)
    heads = [tensor.transpose(0, 1).unsqueeze(0) for tensor in (query, key, value)]
    torch.testing.assert_close(output, attend(reference_attention, heads, documents)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("capability", "installed", "wanted"),
    [
        (9, ("flash_attn", "flash_attn_interface"), "flash_attn_interface"),
        (9, ("flash_attn",), "flash_attn"),
        (8, ("flash_attn", "flash_attn_interface"), "flash_attn"),
        (10, ("flash_attn_interface",), "torch"),
        (8, (), "torch"),
    ],
)
def test_the_quickest_kernel_that_is_there(
    monkeypatch: pytest.MonkeyPatch, capability: int, installed: tuple[str, ...], wanted: str
):
    from types import SimpleNamespace

    def import_module(name: str) -> Any:
        if name not in installed:
            raise ImportError(name)
        return SimpleNamespace(flash_attn_varlen_func=name)

    monkeypatch.setattr(varlen.importlib, "import_module", import_module)
    found = varlen._quickest(capability)
    assert (found if installed and wanted != "torch" else found.__module__.partition(".")[0]) == wanted
