"""Whatever the number of ranks that wrote a state and that reads it: every row is written once and found again."""

from math import prod
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rebus.checkpoints import state_rows
from rebus.checkpoints.state import _read, load_state, restore
from rebus.checkpoints.state_folder import building_folder, described, rank_file, seal, write_rank
from rebus.checkpoints.state_rows import Held, Rows, held_rows, num_rows_of, rows_to_write

AXES = st.lists(st.tuples(st.integers(1, 4), st.booleans()), min_size=1, max_size=2)
SHAPES = st.lists(st.integers(0, 9), max_size=3).map(tuple)


def held_by_all(num_rows: int, axes: list[tuple[int, bool]]) -> list[Held]:
    """What each rank of a device mesh holds, in the order of ranks (the last axis runs fastest)."""
    world = prod(size for size, _ in axes)
    places = [torch.unravel_index(torch.tensor(rank), [size for size, _ in axes]) for rank in range(world)]
    return [
        held_rows(num_rows, [(size, int(at), cut) for (size, cut), at in zip(axes, place, strict=True)])
        for place in places
    ]


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(1, 9))
def test_rows_are_cut_as_torch_chunks_them(num_rows: int, world: int):
    chunks = torch.arange(num_rows).chunk(world)
    for rank, held in enumerate(held_by_all(num_rows, [(world, True)])):
        expected = chunks[rank].tolist() if num_rows and rank < len(chunks) else []
        assert list(range(held.rows.first, held.rows.last)) == expected


@settings(deadline=None)
@given(st.integers(0, 40), AXES, st.integers(1, 12), st.text(min_size=1, max_size=4))
def test_every_row_is_written_once(num_rows: int, axes: list[tuple[int, bool]], mib: int, name: str):
    written: list[int] = []
    for held in held_by_all(num_rows, axes):
        rows = rows_to_write(name, held, mib * state_rows.MIN_PIECE_BYTES)
        assert rows.overlap(held.rows) == rows or not rows
        written += range(rows.first, rows.last)
    assert sorted(written) == list(range(num_rows))


def test_small_tensors_spread_over_the_replicas_and_large_ones_are_cut():
    held = [Held(Rows(0, 64), replica, 8) for replica in range(8)]
    names = [f"layer.{number}.norm" for number in range(400)]
    num_small = [sum(bool(rows_to_write(name, one, 6144)) for name in names) for one in held]
    assert sum(num_small) == 400
    assert min(num_small) > 20
    assert [len(rows_to_write("embedding", one, 1 << 30)) for one in held] == [8] * 8


@settings(deadline=None, max_examples=25)
@given(SHAPES, AXES, AXES, st.booleans())
def test_written_by_some_read_by_others(tmp_path_factory, shape, writers, readers, is_cut):
    """Through the disk: pieces of any device mesh; what a rank of any other reads is its rows of the whole."""
    folder: Path = tmp_path_factory.mktemp("states")
    tensor = torch.arange(prod(shape)).reshape(shape)
    rows, num_rows = tensor.reshape(num_rows_of(shape), *shape[1:]), num_rows_of(shape)
    ranks = held_by_all(num_rows, writers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state_rows, "MIN_PIECE_BYTES", 8 if is_cut else 1 << 20)
        for rank, held in enumerate(ranks):
            own = rows_to_write("a", held, rows[held.rows.first : held.rows.last].nbytes)
            pieces = {"a": rows[own.first : own.last]} if own else {}
            write_rank(building_folder(folder, 7), rank, 7, pieces, {"a": own.first} if own else {})
    state = load_state(seal(building_folder(folder, 7), 7, {"a": described(tensor)}, "{}", len(ranks)))
    found = torch.full(shape, -1)
    restore(state, {"a": found})
    assert torch.equal(found, tensor)
    for held in held_by_all(num_rows, readers):
        local = torch.full((len(held.rows), *shape[1:]), -1)
        for piece in state.stored["a"].pieces:
            if piece.rows.overlap(held.rows):
                _read(rank_file(state.path, piece.rank), [("a", piece.rows, local, held.rows)])
        assert torch.equal(local, rows[held.rows.first : held.rows.last])
