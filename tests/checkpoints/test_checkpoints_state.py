"""Training states are whole or not there."""

from pathlib import Path

import pytest
import torch

from rebus.checkpoints import state as module
from rebus.checkpoints.state import latest_state, list_states, prune_states, save_state


def save(folder: Path, step: int) -> Path:
    weights = {"a": torch.randn(3, 4, generator=torch.Generator().manual_seed(step)).T, "b": torch.tensor(step)}
    return save_state(folder, step=step, weights=weights, optimizer={"a/step": torch.tensor(1.0)}, meta={"at": step})


def test_round_trip_to_the_bit(tmp_path: Path):
    assert latest_state(tmp_path) is None
    for step in (5, 10, 1_000_000):
        save(tmp_path, step)
    state = latest_state(tmp_path)
    assert state is not None
    assert (state.step, state.meta) == (1_000_000, {"at": 1_000_000})
    assert torch.equal(state.weights["a"], torch.randn(3, 4, generator=torch.Generator().manual_seed(1_000_000)).T)
    assert state.weights["b"].dtype == torch.int64
    assert torch.equal(state.optimizer["a/step"], torch.tensor(1.0))


def test_a_killed_save_is_no_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save(tmp_path, 5)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_manifest", die)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 10)
    monkeypatch.undo()
    assert [path.name for path in list_states(tmp_path)] == ["step-000005"]
    save(tmp_path, 10)
    assert [path.name for path in list_states(tmp_path)] == ["step-000005", "step-000010"]


def test_pruning_keeps_the_last(tmp_path: Path):
    for step in (1, 2, 3, 4):
        save(tmp_path, step)
    (tmp_path / ".step-000009.building").mkdir()
    prune_states(tmp_path, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000003", "step-000004"]


def test_tensors_that_share_memory_are_written_in_full(tmp_path: Path):
    shared = torch.randn(4)
    save_state(tmp_path, step=1, weights={"a": shared, "b": shared}, optimizer={}, meta={})
    state = latest_state(tmp_path)
    assert state is not None
    assert torch.equal(state.weights["a"], state.weights["b"])
