"""Training states: what a run resumes from, at this number of ranks or another.

Every rank writes one file of its own rows (`state_rows` says which), rank 0 makes a state of them (`state_folder`
says how it lies on disk). No pickle, so not torch's distributed checkpoints, whose .metadata is one.
"""

import json
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from rebus.checkpoints.state_folder import (
    META,
    Stored,
    building_folder,
    check_whole,
    described,
    is_whole,
    prune,
    rank_file,
    read_index,
    remove_leftovers,
    seal,
    step_folders,
    step_of,
    write_rank,
)
from rebus.checkpoints.state_rows import Rows, local_rows, rows_to_write
from rebus.errors import DataError, RebusError, StrangerError
from rebus.log import say
from rebus.mesh import Mesh, wait_for_all

SHOWN = 5


@dataclass
class _Open:
    """A state begun and not sealed. file: done when this rank's file is on disk; it keeps what the thread raised."""

    step: int
    wholes: dict[str, Stored]
    meta: str
    file: Future


class StateWriter:
    """Writes the states of one run under `folder`; made on every rank, which all come together here once.

    keep: so many states stay. is_async: a thread writes while training goes on.
    """

    def __init__(self, folder: Path, mesh: Mesh, *, keep: int, is_async: bool):
        self.folder, self.mesh, self.keep, self.is_async = folder, mesh, keep, is_async
        self._open: _Open | None = None
        self._sealed = -1
        self._pinned: dict[str, torch.Tensor] = {}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="state")
        if mesh.is_main:
            remove_leftovers(folder)
        wait_for_all(mesh)  # from here on what is being built belongs to this run

    def begin(self, step: int, tensors: dict[str, torch.Tensor], meta: dict[str, Any]) -> None:
        """Starts the state after `step` steps. On every rank, with the same names; meta is rank 0's.

        Plain tensors are taken to be equal on all ranks. When it returns, this rank's rows are copied and may change.
        An earlier state that is still open is settled first, which every rank then waits for.
        Raises: DataError where the disk refused the earlier one (or this one, unless is_async).
        """
        self.settle()
        if step == self._sealed:
            wait_for_all(self.mesh)  # rank 0 may not have renamed the folder of that name yet
        pieces, firsts = self._own_rows(tensors)
        target = building_folder(self.folder, step)
        if self.is_async:
            file = self._thread.submit(write_rank, target, self.mesh.rank, step, self._copied(pieces), firsts)
        else:
            file = _done(lambda: write_rank(target, self.mesh.rank, step, pieces, firsts))
        wholes = {name: described(tensor) for name, tensor in tensors.items()}
        self._open = _Open(step, wholes, json.dumps(meta, indent=2) + "\n", file)

    @property
    def is_open(self) -> bool:
        """A state was begun and is not sealed."""
        return self._open is not None

    @property
    def sealed(self) -> int:
        """The step of the last state that this run has made whole; -1 before the first."""
        return self._sealed

    @property
    def is_written(self) -> bool:
        """This rank's file is on disk, or no state is open. Raises: DataError where the disk refused it."""
        if self._open is None or not self._open.file.done():
            return self._open is None
        self.wait()
        return True

    def wait(self) -> None:
        """Returns once this rank's file is on disk. Raises: DataError where the disk refused it."""
        if self._open is not None:
            self._open.file.result()

    def seal(self) -> None:
        """Makes the open state whole and removes old ones. On every rank, once `is_written` holds on all of them.

        Rank 0 does the work; the others return at once. Raises: DataError where rank 0 finds the state not whole.
        """
        self.wait()
        open_state, self._open = self._open, None
        if open_state is None:
            return
        self._sealed = open_state.step
        if self.mesh.is_main:
            building = building_folder(self.folder, open_state.step)
            seal(building, open_state.step, open_state.wholes, open_state.meta, self.mesh.world)
            prune(self.folder, open_state.step, self.keep)

    def settle(self) -> None:
        """Waits for all ranks' files of the open state and seals it; what the end of a run calls, on every rank."""
        if self._open is not None:
            self.wait()
            wait_for_all(self.mesh)
            self.seal()

    def _own_rows(self, tensors: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
        pieces, firsts = {}, {}
        for name, tensor in tensors.items():
            local, held = local_rows(name, tensor, self.mesh.rank, self.mesh.world)
            rows = rows_to_write(name, held, local.nbytes)
            if rows:
                pieces[name], firsts[name] = local[rows.within(held.rows)], rows.first
        return pieces, firsts

    def _copied(self, pieces: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The rows in memory of their own: the optimizer updates in place while the thread writes."""
        on_card = {name: piece for name, piece in pieces.items() if piece.is_cuda}
        copies = {name: piece.to("cpu", copy=True) for name, piece in pieces.items() if name not in on_card}
        return copies | self._copied_from_card(on_card) if on_card else copies

    def _copied_from_card(self, pieces: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Into pinned buffers, which are slow to get (the driver locks every page) and so kept for the next state."""
        kept, self._pinned = self._pinned, {}
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for name, piece in pieces.items():
                buffer = kept.get(name)
                if buffer is None or (buffer.shape, buffer.dtype) != (piece.shape, piece.dtype):
                    buffer = torch.empty(piece.shape, dtype=piece.dtype, pin_memory=True)
                self._pinned[name] = buffer.copy_(piece, non_blocking=True)
        stream.synchronize()
        return dict(self._pinned)


def _done(write: Callable[[], None]) -> Future:
    """A write that is over when this returns. Raises: what it raises."""
    write()
    future: Future = Future()
    future.set_result(None)
    return future


@dataclass(frozen=True)
class State:
    """A whole state on disk, whose tensors `restore` reads.

    step: optimizer steps done. meta: JSON values. stored: of every tensor its shape, its dtype and where its rows lie.
    """

    path: Path
    step: int
    meta: dict[str, Any]
    stored: dict[str, Stored] = field(repr=False)

    @property
    def names(self) -> tuple[str, ...]:
        """Of all tensors, in the order they were saved in."""
        return tuple(self.stored)


def latest_state(folder: Path, mesh: Mesh = Mesh()) -> State | None:  # noqa: B008 (frozen)
    """The last whole state under `folder`, or None where there is none; rank 0 says once which are passed over."""
    for path in reversed(step_folders(folder)):
        try:
            return load_state(path)
        except RebusError as error:
            if mesh.is_main:
                _say_once(f"{path.name} is passed over, it is not whole: {error}")
    return None


@cache
def _say_once(message: str) -> None:
    say(message)


def load_state(path: Path) -> State:
    """Opens one state; no tensor is read. Raises: DataError where it is not whole."""
    check_whole(path)
    return State(path, step_of(path), json.loads((path / META).read_text()), read_index(path))


def list_states(folder: Path) -> list[Path]:
    """Whole states in step order; what a killed run left half-written is not among them."""
    return [path for path in step_folders(folder) if is_whole(path)]


def restore(state: State, tensors: dict[str, torch.Tensor], *, partly: bool = False) -> None:
    """Fills tensors in place, plain ones and DTensors cut by rows, whatever the number of ranks that wrote them was.

    Only the rows that this rank holds are read. partly: the state may hold more tensors than these.
    Raises: StrangerError where names, shapes or dtypes differ (nothing is filled then), DataError for a damaged file.
    """
    _refuse_other(state, tensors, partly=partly)
    wanted: dict[int, list[tuple[str, Rows, torch.Tensor, Rows]]] = {}
    for name, tensor in tensors.items():
        local, held = local_rows(name, tensor)
        for piece in state.stored[name].pieces:
            if piece.rows.overlap(held.rows):
                wanted.setdefault(piece.rank, []).append((name, piece.rows, local, held.rows))
    for rank, reads in sorted(wanted.items()):
        _read(rank_file(state.path, rank), reads)


def _read(path: Path, reads: list[tuple[str, Rows, torch.Tensor, Rows]]) -> None:
    """reads: name, the rows that the file holds of it, the tensor to fill and the rows that this holds."""
    try:
        with safe_open(path, framework="pt") as file:
            for name, stored, local, held in reads:
                rows = stored.overlap(held)
                local[rows.within(held)].copy_(file.get_slice(name)[rows.within(stored)])
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path} cannot be read: {error}. Remove {path.parent}; an older one is used then.") from error


def _refuse_other(state: State, tensors: dict[str, torch.Tensor], *, partly: bool) -> None:
    found, wanted = state.stored, {name: described(tensor) for name, tensor in tensors.items()}
    rows = [f"{name}: {found.get(name, 'nothing')} in the state, {want} here" for name, want in wanted.items()]
    rows = [row for row, (name, want) in zip(rows, wanted.items(), strict=True) if str(found.get(name)) != str(want)]
    if not partly:
        rows += [f"{name}: {whole} in the state, nothing here" for name, whole in found.items() if name not in wanted]
    if rows:
        more = [f"... and {len(rows) - SHOWN} more"] if len(rows) > SHOWN else []
        lines = "\n".join(f"  {row}" for row in [*rows[:SHOWN], *more])
        raise StrangerError(
            f"{state.path} is of another model, optimizer or precision:\n{lines}\nPut the recipe back as it was when "
            "the state was saved, or give the run another `out` and start from a checkpoint with `init`."
        )
