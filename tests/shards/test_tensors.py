"""Tensors inside a pickle: every kind and view that torch saves, and none that reaches beyond what is there."""

import io
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_unpickle import PROTOCOLS, outcome

from rebus.errors import DataError
from rebus.shards.unpickle import parse_pickle


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", [torch.int64, torch.int32, torch.uint8, torch.float32, torch.float16, torch.bool])
def test_tensors(protocol: int, kind: torch.dtype):
    whole = torch.arange(12).reshape(3, 4).to(kind)
    for tensor in (whole, whole.T, whole[1:, ::2], whole[2, 3], torch.zeros(0, dtype=kind)):
        found = parse_pickle(pickle.dumps(tensor, protocol), "p")
        np.testing.assert_array_equal(found, tensor.numpy())


def load_from_bytes(content: bytes) -> bytes:
    """A pickle whose one value is the tensor view of three numbers in a storage."""

    class Saved:
        def __reduce__(self):
            return torch.storage._load_from_bytes, (content,)

    class View:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (Saved(), 0, (3,), (1,), False, OrderedDict())

    return pickle.dumps(View(), 4)


def archived() -> bytes:
    buffer = io.BytesIO()
    torch.save(torch.tensor([5, 6, -200]).untyped_storage(), buffer)
    return buffer.getvalue()


ARCHIVE = archived()


def test_a_storage_in_an_archive():
    found = parse_pickle(load_from_bytes(ARCHIVE), "p")
    assert found.tolist() == [5, 0, 0], "three bytes of an untyped storage"


@settings(max_examples=100)
@given(st.data())
def test_mutated_archives(data: st.DataObject):
    changed = bytearray(ARCHIVE)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(4, len(changed) - 1))] = data.draw(st.integers(0, 255))
    outcome(load_from_bytes(bytes(changed)))
    outcome(load_from_bytes(ARCHIVE[: data.draw(st.integers(0, len(ARCHIVE)))]))


@pytest.mark.parametrize(
    "view",
    [(0, (4,), (1,)), (1, (3,), (1,)), (-1, (2,), (1,)), (0, (3,), (0,)), (0, (2, 2), (1,)), (0, (2**40,), (0,))],
)
def test_a_view_beyond_its_storage(view: tuple):
    class Forged:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (_Stored(), *view, False, OrderedDict())

    if view == (0, (3,), (0,)):  # repeats one number: within its storage, and no larger than it
        assert parse_pickle(pickle.dumps(Forged()), "p").tolist() == [1, 1, 1]
        return
    with pytest.raises(DataError):
        parse_pickle(pickle.dumps(Forged()), "p")


class _Stored:
    """The storage of [1, 2, 3]."""

    def __reduce__(self):
        return torch.tensor([1, 2, 3])._typed_storage().__reduce__()
