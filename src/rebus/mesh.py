"""Where this process stands among its peers. One process is a mesh of one; `torchrun` makes larger ones."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rebus.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch.distributed.device_mesh import DeviceMesh


@dataclass(frozen=True)
class Mesh:
    """This process's rank among `world` processes that train together; local_rank: among those of its machine.

    is_joined: there is a process group, which a process alone needs for mixed precision only.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    is_joined: bool = False

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def device(self, kind: str) -> str:
        """This process's own device of a kind: `cpu`, or `cuda:1` for the second process of a machine."""
        return f"cuda:{self.local_rank}" if kind == "cuda" else kind


def join_mesh(device: str = "cpu", *, always: bool = False) -> Mesh:
    """Joins the process group that torchrun's environment describes; alone without it.

    device: `cuda` makes this process's own GPU the current one. always: a process alone makes a group of one.
    Tensors on the CPU go by gloo, those on CUDA by NCCL. Raises: ConfigError where there is no GPU for this process.
    """
    rank, world, local_rank = (int(os.environ.get(name, d)) for name, d in _PLACE)
    if device == "cuda":
        _take_gpu(local_rank)
    if world == 1 and not always:
        return Mesh(local_rank=local_rank)
    import torch.distributed as dist

    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
        if world == 1:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        else:
            dist.init_process_group(backend)
    return Mesh(rank, world, local_rank, is_joined=True)


def is_first_process() -> bool:
    """Whether this is rank 0, or alone, by torchrun's environment; also before the group is joined and after."""
    return os.environ.get("RANK", "0") == "0"


_PLACE = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))


def _take_gpu(local_rank: int) -> None:
    import torch

    found = torch.cuda.device_count()
    if local_rank >= found:
        raise ConfigError(
            f"process {local_rank} of this machine has no GPU: torch finds {found}. Start as many processes as there "
            "are GPUs (torchrun --nproc_per_node), or train with device=cpu."
        )
    torch.cuda.set_device(local_rank)


def device_mesh(mesh: Mesh, kind: str, *, shard_ranks: int) -> "DeviceMesh":
    """The ranks as torch's mesh: [world] where `shard_ranks` is the world, else [world / shard_ranks, shard_ranks], of
    which neighbours share one model. Raises: ConfigError where that does not divide."""
    from torch.distributed.device_mesh import init_device_mesh

    if mesh.world % shard_ranks:
        raise ConfigError(f"{mesh.world} processes do not divide into groups of shard_ranks = {shard_ranks}.")
    if shard_ranks == mesh.world:
        return init_device_mesh(kind, (mesh.world,), mesh_dim_names=("shard",))
    shape = (mesh.world // shard_ranks, shard_ranks)
    return init_device_mesh(kind, shape, mesh_dim_names=("replicate", "shard"))


def sum_over_ranks(tensor: "torch.Tensor", mesh: Mesh) -> "torch.Tensor":
    """The tensor, in place, summed over all ranks."""
    if mesh.world > 1:
        import torch.distributed as dist

        dist.all_reduce(tensor)
    return tensor


def leave_mesh(mesh: Mesh) -> None:
    """Leaves the process group, if there is one still."""
    if mesh.is_joined:
        import torch

        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def wait_for_all(mesh: Mesh) -> None:
    """Returns once every process of the mesh has come here."""
    if mesh.world > 1:
        import torch

        torch.distributed.barrier()
