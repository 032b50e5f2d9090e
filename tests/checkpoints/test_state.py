"""Training states of one process: whole or not there, written beside the training, pruned."""

import json
import resource
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from rebus.checkpoints import state as module
from rebus.checkpoints.state import StateWriter, latest_state, list_states, load_state, restore
from rebus.errors import DataError, StrangerError
from rebus.mesh import Mesh

FILES = ["index.json", "manifest.json", "meta.json", "rank-00000.safetensors"]


def tensors_at(step: int) -> dict[str, torch.Tensor]:
    made = torch.randn(64, 48, generator=torch.Generator().manual_seed(step))
    return {"a": made, "a/step": torch.tensor(float(step))}


def save(folder: Path, *steps: int, keep: int = 9, is_async: bool = False) -> StateWriter:
    writer = StateWriter(folder, Mesh(), keep=keep, is_async=is_async)
    for step in steps:
        writer.begin(step, tensors_at(step), {"at": step})
        writer.settle()
    return writer


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def latest_step(folder: Path) -> int | None:
    state = latest_state(folder)
    return state and state.step


@pytest.mark.parametrize("is_async", [True, False])
def test_round_trip_to_the_bit(tmp_path: Path, is_async: bool):
    shared = torch.randn(4)
    saved = {
        "transposed": torch.randn(3, 4).T,
        "half": torch.randn(5, 2).bfloat16(),
        "count": torch.tensor(7),
        "flags": torch.tensor([True, False]),
        "none": torch.empty(0, 4),
        "thin": torch.empty(3, 0),
        "tied": shared,
        "tied too": shared,
        "learns": torch.nn.Parameter(torch.randn(2, 2)),
    }
    assert latest_state(tmp_path) is None
    writer = StateWriter(tmp_path, Mesh(), keep=2, is_async=is_async)
    writer.begin(1_000_000, saved, {"loss": 0.1, "tally": {"bad": 3}})
    writer.settle()
    state = latest_state(tmp_path)
    assert state is not None
    assert (state.step, state.meta) == (1_000_000, {"loss": 0.1, "tally": {"bad": 3}})
    assert state.names == tuple(saved)
    found = {name: torch.nn.Parameter(torch.zeros_like(tensor), tensor.requires_grad) for name, tensor in saved.items()}
    restore(state, found)
    assert all(torch.equal(found[name], tensor) for name, tensor in saved.items())
    assert names_in(tmp_path) == ["step-1000000"]
    assert names_in(state.path) == FILES


@contextmanager
def held_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Writes wait for the event; opened at the end, whatever happens."""
    gate, write = threading.Event(), module.write_rank

    def slow(*arguments) -> None:
        assert gate.wait(60)
        write(*arguments)

    monkeypatch.setattr(module, "write_rank", slow)
    try:
        yield gate
    finally:
        gate.set()


def test_training_goes_on_while_the_thread_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tensors, meta = tensors_at(1), {"at": 1}
    writer = StateWriter(tmp_path, Mesh(), keep=2, is_async=True)
    with held_back(monkeypatch) as gate:
        writer.begin(1, tensors, meta)
        assert writer.is_open
        assert not writer.is_written
        for tensor in tensors.values():  # as an optimizer does
            tensor.add_(1)
        meta["at"] = 2
        gate.set()
        writer.wait()
    assert writer.is_written
    assert latest_state(tmp_path) is None
    writer.seal()
    state = latest_state(tmp_path)
    assert state is not None
    restore(state, tensors)
    assert state.meta == {"at": 1}
    assert all(torch.equal(tensors[name], tensor) for name, tensor in tensors_at(1).items())
    assert not writer.is_open


def test_a_save_waits_for_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    writer = StateWriter(tmp_path, Mesh(), keep=2, is_async=True)
    with held_back(monkeypatch) as gate:
        writer.begin(1, tensors_at(1), {})
        timer = threading.Timer(0.05, gate.set)
        timer.start()
        writer.begin(2, tensors_at(2), {})
        assert gate.is_set()
        timer.join()
    assert latest_step(tmp_path) == 1
    writer.settle()
    assert latest_step(tmp_path) == 2


def cut_short(state: Path) -> None:
    file = state / "rank-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def swap(state: Path) -> None:
    other = state.with_name("step-000001") / "rank-00000.safetensors"
    assert other.stat().st_size == (state / other.name).stat().st_size
    shutil.copy(other, state)


def lose_rank(state: Path) -> None:
    (state / "rank-00000.safetensors").unlink()


def lose_manifest(state: Path) -> None:
    (state / "manifest.json").unlink()


def damage_index(state: Path) -> None:
    (state / "index.json").write_text((state / "index.json").read_text().replace("64", "65"))


def rename(state: Path) -> None:
    state.rename(state.with_name("step-000009"))


@pytest.mark.parametrize("harm", [cut_short, swap, lose_rank, lose_manifest, damage_index, rename])
def test_what_is_not_whole_is_passed_over_and_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm):
    said: list[str] = []
    monkeypatch.setattr(module, "say", said.append)
    save(tmp_path, 1, 2)
    assert latest_step(tmp_path) == 2
    harm(tmp_path / "step-000002")
    assert [latest_step(tmp_path), latest_step(tmp_path)] == [1, 1]
    assert [path.name for path in list_states(tmp_path)] == ["step-000001"]
    assert len(said) == 1
    assert "is passed over" in said[0]


def test_a_full_disk_reaches_the_loop_and_costs_no_older_state(tmp_path: Path):
    """A limit on the size of files stands for a full disk: the write fails in the thread, by the kernel."""
    writer = save(tmp_path, 1, is_async=True)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        writer.begin(2, {"a": torch.zeros(1 << 20)}, {})
        with pytest.raises(DataError, match=r"step 2 could not be saved under .*File too large.*Free space"):
            writer.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    for call in (lambda: writer.is_written, writer.seal, writer.settle, lambda: writer.begin(3, {}, {})):
        with pytest.raises(DataError, match="step 2"):
            call()
    assert names_in(tmp_path / ".step-000002.building") == []
    assert latest_step(tmp_path) == 1
    save(tmp_path, 2)
    assert names_in(tmp_path) == ["step-000001", "step-000002"]


def test_pruning_keeps_the_last(tmp_path: Path):
    save(tmp_path, 1, 2, 3)
    lose_rank(tmp_path / "step-000003")
    save(tmp_path, 5)
    writer = StateWriter(tmp_path, Mesh(), keep=2, is_async=False)
    for name in (".step-000002.building", ".step-000009.building"):  # rank 1 may be at step 9 by now
        (tmp_path / name).mkdir()
    writer.begin(4, tensors_at(4), {})
    writer.seal()
    kept = [".step-000009.building", "step-000002", "step-000004", "step-000005"]
    assert names_in(tmp_path) == kept


def test_a_state_of_the_same_step_is_replaced(tmp_path: Path):
    save(tmp_path, 3)
    writer = StateWriter(tmp_path, Mesh(), keep=1, is_async=False)
    writer.begin(3, tensors_at(30), {"at": 30})
    writer.seal()
    assert names_in(tmp_path) == ["step-000003"]
    assert load_state(tmp_path / "step-000003").meta == {"at": 30}


def test_the_older_state_stands_until_the_new_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """keep = 1, and the machine dies just before the rename."""
    writer = save(tmp_path, 1, keep=1)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rebus.checkpoints.state_folder._rename_over", die)
    writer.begin(2, tensors_at(2), {})
    with pytest.raises(KeyboardInterrupt):
        writer.seal()
    assert latest_step(tmp_path) == 1


def test_only_rank_0_clears_what_killed_runs_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "wait_for_all", lambda mesh: None)
    (tmp_path / ".step-000009.building").mkdir()
    (tmp_path / ".step-000001.trash").mkdir()
    StateWriter(tmp_path, Mesh(1, 2), keep=1, is_async=False)
    assert len(names_in(tmp_path)) == 2
    StateWriter(tmp_path, Mesh(0, 2), keep=1, is_async=False)
    assert names_in(tmp_path) == []


def test_a_state_that_lacks_a_rank_or_a_row_is_not_sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "wait_for_all", lambda mesh: None)
    first, second = (StateWriter(tmp_path, Mesh(rank, 2), keep=1, is_async=False) for rank in range(2))
    first.begin(1, tensors_at(1), {})
    with pytest.raises(DataError, match=r"rank-00001.*missing.*all nodes share"):
        first.seal()
    first.begin(2, {f"norm.{number}": torch.ones(4) for number in range(20)}, {})
    second.begin(2, {}, {})
    with pytest.raises(DataError, match=r"rows 0 to 4 are written by no rank"):
        first.seal()
    assert latest_state(tmp_path) is None


def test_strangers_are_named_and_nothing_is_filled(tmp_path: Path):
    save(tmp_path, 1)
    state = load_state(tmp_path / "step-000001")
    wanted = {"a": torch.zeros(64, 48, dtype=torch.bfloat16), "b": torch.zeros(2, 3)}
    with pytest.raises(StrangerError) as error:
        restore(state, wanted)
    for line in (
        "a: float32 [64, 48] in the state, bfloat16 [64, 48] here",
        "b: nothing in the state, float32 [2, 3] here",
        "a/step: float32 [] in the state, nothing here",
    ):
        assert line in str(error.value)
    assert not any(tensor.any() for tensor in wanted.values())
    with pytest.raises(StrangerError, match=r"a/step: .*nothing here"):
        restore(state, {"a": torch.zeros(64, 48)})
    part = {"a": torch.zeros(64, 48)}
    restore(state, part, partly=True)
    assert torch.equal(part["a"], tensors_at(1)["a"])


def test_the_index_is_plain_json(tmp_path: Path):
    save(tmp_path, 1)
    index = json.loads((tmp_path / "step-000001" / "index.json").read_text())
    assert index["a"] == {"shape": [64, 48], "dtype": "float32", "pieces": [[0, 0, 64]]}
