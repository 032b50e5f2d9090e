"""The layout of packs and the behaviour behind a cache."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rebus.model.attention import documents_of, packed_attention, reference_attention, register
from rebus.model.positions import document_indices, document_positions

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


@given(lengths_of_documents)
def test_packed_equals_reference(lengths: list[int]):
    torch.manual_seed(0)
    documents, total = documents_of(bounds_of(lengths)), sum(lengths)
    inputs = [torch.randn(1, heads, total, 8, requires_grad=True) for heads in (4, 2, 2)]
    outputs = [
        function(torch.nn.Identity(), *inputs, None, scaling=0.3, documents=documents)[0]
        for function in (packed_attention, reference_attention)
    ]
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)
    weights = torch.randn_like(outputs[0])
    ours, theirs = (torch.autograd.grad((output * weights).sum(), inputs) for output in outputs)
    for gradient, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_queries", [1, 3, 10])
def test_behind_a_cache_the_last_queries_see_all_before_them(num_queries: int):
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, heads, 10, 8) for heads in (4, 2, 2))
    whole, _ = packed_attention(torch.nn.Identity(), query, key, value, None)
    tail, _ = packed_attention(torch.nn.Identity(), query[:, :, -num_queries:], key, value, None)
    torch.testing.assert_close(tail, whole[:, -num_queries:], rtol=1e-5, atol=1e-5)


def test_a_padding_mask_is_refused():
    """Silently ignored it would let padding into every answer."""
    from transformers import AttentionMaskInterface

    register()
    with pytest.raises(ValueError, match="no padding mask"):
        AttentionMaskInterface()["rebus_packed"](attention_mask=torch.ones(1, 4))
