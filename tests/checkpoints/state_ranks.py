"""What test_state_ranks.py runs in a process of its own: ranks that write a state and others that read it, and a writer
that is killed. One start of torch: all are forks, made before anything runs in parallel."""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import safetensors.torch
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from rebus.checkpoints import state as module
from rebus.checkpoints.state import StateWriter, latest_state, restore
from rebus.mesh import Mesh

RANKS = 4


class Net(nn.Module):
    """Parameters of 9, 5, 3 and 1 rows: four ranks get chunks that are not even, and some none."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(nn.Linear(6, 9), nn.Linear(9, 5), nn.Linear(5, 3))
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.blocks(inputs) * self.scale


def sharded(shape: tuple[int, ...]) -> Net:
    """FSDP2 over [shard] or [replicate, shard], as the engine wraps a model."""
    torch.manual_seed(0)
    net = Net()
    names = ("replicate", "shard")[-len(shape) :]
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
    for part in (*net.blocks, net):
        fully_shard(part, mesh=mesh)
    for part in (*net.blocks, net):
        part.set_gradient_divide_factor(1)
        part.set_force_sum_reduction_for_comms(True)
    return net


def trained(net: nn.Module, rank: int) -> torch.optim.AdamW:
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    for step in range(2):
        torch.manual_seed(step * RANKS + rank)
        net(torch.randn(4, 6)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def tensors_of(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Weights, moments, counts of steps (plain), and a plain tensor that is large enough to be cut among ranks."""
    named = dict(net.named_parameters())
    states = {f"optimizer/{n}/{k}": v for n, p in named.items() for k, v in optimizer.state[p].items()}
    average = torch.arange(3 << 18, dtype=torch.float32).reshape(-1, 4)
    return {**{f"weights/{n}": p for n, p in named.items()}, **states, "average": average}


def full(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().full_tensor() if isinstance(tensor, DTensor) else tensor.detach()


def write(folder: Path, shape: tuple[int, ...], rank: int) -> None:
    """Saves a trained model as state 2 and, for comparison, every tensor whole."""
    world = torch.tensor(shape).prod().item()
    net = sharded(shape)
    tensors = tensors_of(net, trained(net, rank))
    writer = StateWriter(folder, Mesh(rank, int(world)), keep=1, is_async=True)
    writer.begin(2, tensors, {"rank": rank})
    whole = {name: full(tensor).contiguous().clone() for name, tensor in tensors.items()}
    if rank == 0:
        safetensors.torch.save_file(whole, folder / "whole.safetensors")
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    writer.settle()
    dist.barrier()


def check_read(folder: Path, shape: tuple[int, ...], rank: int) -> None:
    """Restores into another model, sharded by `shape` (plain where it is empty), and compares to the bit."""
    net = sharded(shape) if shape else Net()
    tensors = tensors_of(net, trained(net, rank))
    for tensor in tensors.values():
        tensor.detach().fill_(-1)
    state = latest_state(folder)
    assert state is not None
    assert state.meta == {"rank": 0}
    restore(state, tensors)
    expected = safetensors.torch.load_file(folder / "whole.safetensors")
    assert set(tensors) == set(expected)
    for name, tensor in tensors.items():
        assert torch.equal(full(tensor), expected[name]), name


def check_files_read(folder: Path, rank: int) -> None:
    """Of what two ranks wrote, each of four opens only the files of its own rows: 9 as 5 + 4, then as 3 each."""
    opened: list[str] = []
    read = module._read
    module._read = lambda path, reads: (opened.append(path.name), read(path, reads))
    state = latest_state(folder)
    assert state is not None
    name = "blocks.0.weight"
    restore(state, {f"weights/{name}": dict(sharded((RANKS,)).named_parameters())[name]}, partly=True)
    module._read = read
    expected = [["rank-00000.safetensors"], ["rank-00000.safetensors", "rank-00001.safetensors"]]
    assert opened == [*expected, ["rank-00001.safetensors"], []][rank], opened


def joined(folder: Path, name: str, rank: int, world: int) -> None:
    store = dist.FileStore(str(folder / name), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)


def run_rank(folder: Path, rank: int) -> None:
    two, hybrid = folder / "two", folder / "hybrid"
    if rank < 2:
        joined(folder, "first", rank, 2)
        write(two, (2,), rank)
        dist.destroy_process_group()
    joined(folder, "second", rank, RANKS)
    check_read(two, (RANKS,), rank)
    check_read(two, (2, 2), rank)
    check_files_read(two, rank)
    write(hybrid, (2, 2), rank)
    check_read(hybrid, (RANKS,), rank)
    check_read(hybrid, (RANKS, 1), rank)
    dist.destroy_process_group()
    if rank == 0:
        check_read(two, (), rank)
        check_read(hybrid, (), rank)


def forked(run: Callable[[], None]) -> int:
    """The process id of a child that runs it and exits with 0 where all went well."""
    if child := os.fork():
        return child
    try:
        run()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def run_ranks(folder: Path) -> None:
    for name in ("two", "hybrid"):
        (folder / name).mkdir()
    ranks = [forked(partial(run_rank, folder, rank)) for rank in range(RANKS)]
    assert [os.waitpid(child, 0)[1] for child in ranks] == [0] * RANKS


def write_until_killed(folder: Path) -> None:
    """State 1 whole, then state 2, whose file is large enough to be killed in."""
    writer = StateWriter(folder, Mesh(), keep=1, is_async=True)
    writer.begin(1, {"a": torch.ones(4)}, {})
    writer.settle()
    writer.begin(2, {"a": torch.ones(1 << 26)}, {})
    writer.wait()
    time.sleep(600)


def has_begun(building: Path) -> bool:
    try:
        return any(path.stat().st_size for path in building.iterdir())
    except FileNotFoundError:  # not there yet, or renamed between the two looks
        return False


def kill_a_writer(folder: Path) -> None:
    """Kills it once some of the second state's file is there."""
    writer = forked(partial(write_until_killed, folder))
    building, end = folder / ".step-000002.building", time.monotonic() + 120
    while not has_begun(building):
        assert time.monotonic() < end, "never came so far"
        time.sleep(0.001)
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    run_ranks(Path(sys.argv[1]))
    kill_a_writer(Path(sys.argv[1]) / "killed")
