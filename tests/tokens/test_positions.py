"""M-RoPE by the official rule, written out by hand, against the vectorised one."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rebus.pictures.config import FixedConfig, NativeConfig
from rebus.tokens.positions import token_positions

QWEN2 = NativeConfig(kind="native")
QWEN2_5 = NativeConfig(kind="native", tokens_per_second=2.0)

Piece = int | tuple[int, int, int, float]
"""Some tokens of text, or a picture's (time, height, width) in merged tokens with seconds a step of time."""


def by_hand(document: list[Piece], tokens_per_second: float) -> list[tuple[int, int, int]]:
    """Token by token: text counts on all axes; vision counts from where text stopped; then the largest plus one."""
    found: list[tuple[int, int, int]] = []
    for piece in document:
        start = max(max(triple) for triple in found) + 1 if found else 0
        if isinstance(piece, int):
            found += [(start + i,) * 3 for i in range(piece)]
            continue
        time, height, width, seconds = piece
        pace = seconds * tokens_per_second if tokens_per_second and seconds else 1
        for t in range(time):
            for row in range(height):
                found += [(start + math.floor(t * pace + 1e-6), start + row, start + column) for column in range(width)]
    return found


def arrays(documents: list[list[Piece]]) -> tuple[np.ndarray, ...]:
    bounds, starts, lengths, grids, seconds = [0], [], [], [], []
    for document in documents:
        at = bounds[-1]
        for piece in document:
            if isinstance(piece, int):
                at += piece
                continue
            time, height, width, pace = piece
            starts.append(at)
            lengths.append(time * height * width)
            grids.append((time, 2 * height, 2 * width))
            seconds.append(pace)
            at += lengths[-1]
        bounds.append(at)
    shapes = np.array(grids, np.int32).reshape(-1, 3)
    return np.array(bounds), np.array(starts, np.int32), np.array(lengths, np.int32), shapes, np.array(seconds)


pictures = st.tuples(
    st.integers(1, 4), st.integers(1, 5), st.integers(1, 5), st.sampled_from([0.0, 0.5, 0.99, 1.0, 1.5])
)
documents = st.lists(st.lists(st.one_of(st.integers(1, 6), pictures), min_size=1, max_size=6), min_size=1, max_size=4)


@given(documents=documents, config=st.sampled_from([QWEN2, QWEN2_5]))
@settings(max_examples=200, deadline=None)
def test_vectorised_is_the_rule_by_hand(documents: list[list[Piece]], config: NativeConfig):
    wanted = [triple for document in documents for triple in by_hand(document, config.tokens_per_second)]
    assert token_positions(*arrays(documents), config).T.tolist() == [list(triple) for triple in wanted]


def test_text_goes_on_after_the_longest_axis():
    """A video of 16 steps of 2 x 2 tokens at position 3 ends at 18: the next text is 19 (transformers 5.17 says 5)."""
    positions = token_positions(*arrays([[3, (16, 2, 2, 0.5), 2]]), QWEN2)
    assert positions[:, -2:].tolist() == [[19, 20]] * 3
    assert positions[:, 3:7].tolist() == [[3, 3, 3, 3], [3, 3, 4, 4], [3, 4, 3, 4]]


@pytest.mark.parametrize(
    ("seconds", "steps"), [(0.5, [0, 1, 2]), (0.99, [0, 1, 3]), (1.5, [0, 3, 6]), (0.1, [0, 0, 0])]
)
def test_time_is_absolute_in_qwen2_5(seconds: float, steps: list[int]):
    """Two steps a second: transformers 5.17 cuts the seconds to whole numbers first, and says 0, 0, 0 for 0.5."""
    positions = token_positions(*arrays([[(3, 1, 1, seconds)]]), QWEN2_5)
    assert positions[0].tolist() == steps


def test_documents_that_attend_to_one_another_count_on():
    bounds, *rest = arrays([[2, (1, 2, 3, 0.0), 1], [4]])
    together = token_positions(bounds[[0, -1]], *rest, QWEN2)
    assert together[:, 8].tolist() == [5, 5, 5]
    assert together[0, 9:].tolist() == [6, 7, 8, 9]


def test_one_row_where_pictures_have_no_axes():
    bounds, *rest = arrays([[2, (1, 2, 2, 0.0)], [3]])
    assert token_positions(bounds, *rest, FixedConfig()).tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2]
