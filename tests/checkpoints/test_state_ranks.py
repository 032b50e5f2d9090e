"""Training states of real processes: gloo ranks under FSDP2, and a writer that is killed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

from rebus.checkpoints.state import StateWriter, latest_state
from rebus.mesh import Mesh


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the processes of state_ranks.py left; a rank that read something else than was written ends them."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, str(Path(__file__).with_name("state_ranks.py")), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.mark.parametrize(("name", "world"), [("two", 2), ("hybrid", 4)])
def test_what_some_ranks_wrote_others_read(written: Path, name: str, world: int):
    """2 FSDP2 ranks write, 4 read (Shard; Replicate and Shard); (2, 2) write, 4, (4, 1) and one plain process read."""
    check_work_is_shared(written / name / "step-000002", world)


def check_work_is_shared(state: Path, world: int) -> None:
    """One file a rank, together as large as the tensors; the large plain one is in two of them."""
    files = sorted(state.glob("rank-*.safetensors"))
    assert len(files) == world
    assert len(list(state.iterdir())) == world + 3
    index = json.loads((state / "index.json").read_text())
    assert len(index["average"]["pieces"]) == 2 + (world == 4)
    held = {rank: set(safe_open(file, framework="pt").keys()) for rank, file in enumerate(files)}
    assert held == {rank: names_of(index, rank) for rank in range(world)}
    sharded = [piece[0] for piece in index["weights/blocks.0.weight"]["pieces"]]
    assert len(sharded) == 2, "a row that two groups of ranks hold is written by one of them"


def names_of(index: dict, rank: int) -> set[str]:
    return {name for name, whole in index.items() if rank in {piece[0] for piece in whole["pieces"]}}


def test_killed_while_writing_the_earlier_state_is_the_latest(written: Path):
    killed = written / "killed"
    assert sorted(path.name for path in killed.iterdir()) == [".step-000002.building", "step-000001"]
    state = latest_state(killed)
    assert state is not None
    assert state.step == 1
    StateWriter(killed, Mesh(), keep=1, is_async=False)
    assert [path.name for path in killed.iterdir()] == ["step-000001"]
