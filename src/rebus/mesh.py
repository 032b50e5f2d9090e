"""Where this process stands among its peers. One process is a mesh of one; `torchrun` makes larger ones."""

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Mesh:
    """This process's rank among `world` processes that train together."""

    rank: int = 0
    world: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def join_mesh() -> Mesh:
    """Joins the process group that torchrun's environment describes; alone without it.

    Tensors on the CPU go by gloo, those on CUDA by NCCL.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Mesh()
    import torch

    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    return Mesh(torch.distributed.get_rank(), world)


def leave_mesh(mesh: Mesh) -> None:
    """Leaves the process group, if there was one."""
    if mesh.world > 1:
        import torch

        torch.distributed.destroy_process_group()


def wait_for_all(mesh: Mesh) -> None:
    """Returns once every process of the mesh has come here."""
    if mesh.world > 1:
        import torch

        torch.distributed.barrier()
