"""Collate against a slow reference that goes token by token."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rebus.batches.batch import IGNORE, Batch
from rebus.batches.collate import Document, collate
from rebus.errors import SlotMismatchError
from rebus.pictures.config import FixedConfig
from rebus.records import Damage, Image
from rebus.tokens.encode import IMAGE_ID, Encoded

SHAPE = (3, 2, 2)
RULE = FixedConfig(size=2)


def document_of(pieces: list[tuple[str, int]], number: int) -> Document:
    """pieces: ("text" | "trained" | "image", length)."""
    ids: list[int] = []
    trainable: list[bool] = []
    starts, lengths = [], []
    for kind, length in pieces:
        if kind == "image":
            starts.append(len(ids))
            lengths.append(length)
        ids += [IMAGE_ID if kind == "image" else 100 * number + len(ids) + i for i in range(length)]
        trainable += [kind == "trained"] * length
    encoded = Encoded(
        np.array(ids, np.int32),
        np.array(trainable),
        np.array(starts, np.int32),
        np.array(lengths, np.int32),
        tuple(Image(2, 2) for _ in starts),
        np.array([[1, 2, 2]] * len(starts), np.int32).reshape(-1, 3),
        np.zeros(len(starts), np.float32),
    )
    arrays = tuple(np.full((1, *SHAPE), number + i / 10, np.float32) for i in range(len(starts)))
    return Document(encoded, arrays, f"{number:032x}", f"key{number}")


documents = st.lists(
    st.lists(st.tuples(st.sampled_from(["text", "trained", "image"]), st.integers(1, 5)), min_size=1, max_size=5),
    min_size=1,
    max_size=5,
).map(lambda all_pieces: [document_of(pieces, number) for number, pieces in enumerate(all_pieces)])


def slow_collate(documents: list[Document]) -> dict[str, list]:
    out: dict[str, list] = {name: [] for name in ("ids", "labels", "positions", "slots")} | {"bounds": [0]}
    for document in documents:
        one, start = document.encoded, len(out["ids"])
        for t in range(one.num_tokens):
            out["ids"].append(int(one.ids[t]))
            out["positions"].append(t)
            following = t + 1 < one.num_tokens and one.trainable[t + 1]
            out["labels"].append(int(one.ids[t + 1]) if following else IGNORE)
        out["slots"] += [[start + int(s), int(n)] for s, n in zip(one.image_starts, one.image_lengths, strict=True)]
        out["bounds"].append(len(out["ids"]))
    return out


@given(documents=documents)
@settings(max_examples=150, deadline=None)
def test_collate_is_the_slow_reference(documents: list[Document]):
    batch, slow = collate(documents, SHAPE, RULE, is_raw=False), slow_collate(documents)
    for name in ("ids", "labels", "positions", "bounds"):
        assert getattr(batch, name).tolist() == slow[name], name
    assert batch.slots.tolist() == slow["slots"]
    arrays = [array for document in documents for array in document.arrays]
    assert batch.pixels.shape == (len(arrays), *SHAPE)
    assert all(np.array_equal(have[None], want) for have, want in zip(batch.pixels.numpy(), arrays, strict=True))
    assert batch.num_supervised == sum(document.encoded.num_supervised for document in documents)
    assert (batch.num_tokens, batch.num_documents, batch.num_images) == (
        len(slow["ids"]),
        len(documents),
        len(arrays),
    )


def test_types_are_those_of_the_contract():
    batch = collate([document_of([("image", 2), ("trained", 3)], 1)], SHAPE, RULE, is_raw=False)
    assert {name: getattr(batch, name).dtype for name in ("ids", "labels", "positions", "slots")} == dict.fromkeys(
        ("ids", "labels", "positions", "slots"), torch.int64
    )
    assert batch.bounds.dtype == torch.int32
    assert batch.pixels.dtype == torch.float32


def test_text_alone_still_has_pixels_of_the_right_shape():
    batch = collate([document_of([("trained", 3)], 1)], SHAPE, RULE, is_raw=False)
    assert batch.pixels.shape == (0, *SHAPE)
    assert batch.slots.shape == (0, 2)


def test_an_image_too_few_names_the_sample():
    whole = document_of([("image", 2), ("trained", 1)], 7)
    with pytest.raises(SlotMismatchError, match=r"key7 .* has 1 image slots but 0 images"):
        collate([Document(whole.encoded, (), whole.uid, whole.key)], SHAPE, RULE)


@given(documents=documents, cuts=st.lists(st.integers(1, 5), max_size=4))
@settings(max_examples=100, deadline=None)
def test_documents_together_are_one_document(documents: list[Document], cuts: list[int]):
    """What attends together has one row of positions, and its labels stop at its end alone."""
    marks = sorted({min(cut, len(documents)) for cut in cuts} | {0, len(documents)})
    sizes = np.diff(marks).tolist()
    batch = collate(documents, SHAPE, RULE, is_raw=False, together=sizes)
    start = 0
    for first, end in pairwise(marks):
        ids = np.concatenate([one.encoded.ids for one in documents[first:end]])
        trainable = np.concatenate([one.encoded.trainable for one in documents[first:end]])
        wanted = [int(ids[t]) if trainable[t] else IGNORE for t in range(1, len(ids))] + [IGNORE]
        assert batch.labels[start : start + len(ids)].tolist() == wanted
        assert batch.positions[start : start + len(ids)].tolist() == list(range(len(ids)))
        start += len(ids)
        assert start in batch.bounds.tolist()
    assert len(batch.bounds) == len(marks)


def test_an_array_of_another_shape_is_refused():
    whole = document_of([("image", 2), ("trained", 1)], 7)
    with pytest.raises(ValueError, match=r"image 0 has rows float32 \(3, 2, 2\), not float32 \(3, 2, 9\)"):
        collate([whole], (3, 2, 9), RULE, is_raw=False)


def test_raw_pixels_and_the_models_own_are_not_confused():
    whole = document_of([("image", 2), ("trained", 1)], 7)
    raw = replace(whole, arrays=(np.full((1, *SHAPE), 200, np.uint8),))
    with pytest.raises(ValueError, match=r"image 0 has rows uint8 \(3, 2, 2\), not float32"):
        collate([raw], SHAPE, RULE, is_raw=False)
    assert collate([raw], SHAPE, RULE).pixels.dtype == torch.uint8
    with pytest.raises(ValueError, match=r"image 0 has rows float32 \(3, 2, 2\), not uint8"):
        collate([whole], SHAPE, RULE)


def test_moving_keeps_names_and_damage():
    damage = (Damage("00000.tar", "k", 0, "undecodable image"),)
    moved: Batch = collate([document_of([("trained", 3)], 1)], SHAPE, RULE, damage).to("cpu")
    assert (moved.keys, moved.damage) == (("key1",), damage)
