"""Where this process stands among those that train one model together, and how the model is laid over them.

Everything here is torch's own: the process group that torchrun describes, a device mesh, FSDP2 (`fully_shard`), sums
over all processes. The model code knows nothing of it. With one process there is no group, and every method is the
identity.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from diptych.core.weights import mesh_of
from diptych.train.recipe import ONE_PROCESS, ParallelSettings


@dataclass(frozen=True)
class Ranks:
    """Args: `mesh` has the dimensions replicate, shard and tensor; None for one process."""

    settings: ParallelSettings
    mesh: DeviceMesh | None = None

    @classmethod
    def join(cls, settings: ParallelSettings, device: torch.device) -> "Ranks":
        """Join the processes that torchrun started; alone where it did not.

        Raises:
            ValueError: where the recipe's layout does not fill the processes.
        """
        world = int(os.environ.get("WORLD_SIZE", "1"))
        settings = settings.filled(world, device.type)
        if world == 1:
            return cls(settings)
        if not dist.is_initialized():
            if device.type == "cuda":
                torch.cuda.set_device(_gpu_of_this_process())
            # torchrun keeps one store over its restarts; without a name of their own, processes that are started again
            # would look for those that are gone.
            store, rank, _ = next(rendezvous("env://"))
            attempt = PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
            backend = "nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, store=attempt, rank=rank, world_size=world)
        shape = (settings.replicate, settings.shard, settings.tensor)
        return cls(settings, init_device_mesh(device.type, shape, mesh_dim_names=("replicate", "shard", "tensor")))

    @property
    def is_first(self) -> bool:
        """Whether this process writes what is written once."""
        return self.mesh is None or dist.get_rank() == 0

    @property
    def here(self) -> int:
        """How many of the processes are on this machine."""
        return 1 if self.mesh is None else int(os.environ.get("LOCAL_WORLD_SIZE", dist.get_world_size()))

    @property
    def is_first_here(self) -> bool:
        """Whether this process looks for all that are on this machine."""
        return self.mesh is None or int(os.environ.get("LOCAL_RANK", dist.get_rank())) == 0

    @property
    def readers(self) -> int:
        """How many parts the rows of a step are divided into."""
        return self.settings.readers

    @property
    def reader(self) -> int:
        """Which of those parts is this process's."""
        if self.mesh is None:
            return 0
        replicate, shard, _ = self.mesh.get_coordinate() or (0, 0, 0)
        return int(replicate) * self.settings.shard + int(shard)

    @property
    def holds_copies(self) -> bool:
        """Whether each process keeps all weights, and gradients are summed once a step.

        On CPUs alone: a GPU does that with FSDP2, which sums a block's while it computes those of the next. A processor
        has nothing that could do so meanwhile, and FSDP2's own copies of weights and gradients take it as long again.
        """
        return (
            self.mesh is not None
            and self.mesh.device_type == "cpu"
            and self.settings.shard == self.settings.tensor == 1
        )

    @property
    def keeps_freed_memory(self) -> bool:
        """Whether the C library may keep what a step frees. Not where weights are sharded on a CPU: FSDP2 takes pieces
        of ever other sizes, and what stays free between them would come to more than the shards save."""
        return self.mesh is None or self.mesh.device_type != "cpu" or self.settings.shard == 1

    @property
    def averaged(self) -> int:
        """Of how many processes' gradients a step gets the mean instead of the sum."""
        return 1 if self.holds_copies else self.readers

    def add_up(self, parameters: Sequence[Tensor]) -> None:
        """Sum the gradients over the processes, where nothing else did it on the way.

        A gradient that some process lacks counts as zeros there, and one that all of them lack stays away.
        """
        if not self.holds_copies:
            return
        known = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.uint8)
        dist.all_reduce(known, dist.ReduceOp.MAX)
        under_way = []
        for parameter, is_known in zip(parameters, known.tolist(), strict=True):
            if is_known:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                under_way.append(dist.all_reduce(parameter.grad, async_op=True))
        for sum_of_one in under_way:
            sum_of_one.wait()

    def spread(self, networks: Sequence[nn.Module]) -> None:
        """Divide the matrices of the transformer blocks, and shard the weights of what is called, block by block
        (FSDP2; hybrid where replicate > 1).

        Raises:
            ValueError: heads or units that do not divide.
        """
        if self.mesh is None or self.holds_copies:
            return
        # Both import torch's compiler, which takes a second: who holds all of the model steps without it.
        from torch.distributed.fsdp import fully_shard

        from diptych.train.tensor_parallel import divide

        if self.settings.tensor > 1:
            for network in networks:
                divide(network, self.mesh["tensor"])
        data = self.mesh["replicate", "shard"]
        for network in networks:
            network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # FSDP knows no other
            for block in blocks_of(network):
                fully_shard(block, mesh=data)
            fully_shard(network, mesh=data)

    def sums(self, *numbers: float) -> list[float]:
        """Each number summed over all processes."""
        if self.mesh is None:
            return list(numbers)
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        summed = torch.tensor(numbers, dtype=torch.float64, device=device)
        dist.all_reduce(summed)
        found: list[float] = summed.tolist()
        return found

    def total(self, *numbers: float) -> list[float]:
        """Each number summed over the processes that read different rows."""
        return [number / self.settings.tensor for number in self.sums(*numbers)]

    def holders(self, tensor: Tensor) -> float:
        """How many processes hold each number of a tensor."""
        if self.mesh is None:
            return 1
        mesh: DeviceMesh | None = mesh_of(tensor)
        if mesh is None:
            return dist.get_world_size()
        placements = tensor.placements  # type: ignore[attr-defined]
        shards = [mesh.size(axis) for axis, placement in enumerate(placements) if placement.is_shard()]
        return dist.get_world_size() / math.prod(shards)

    def wait(self) -> None:
        """Until all have come here."""
        if self.mesh is not None:
            dist.barrier()

    def leave(self) -> None:
        """The end of `join`."""
        if self.mesh is not None:
            dist.destroy_process_group()

    def any(self, here: bool) -> bool:
        """Whether it is so in any process."""
        return self.sums(float(here))[0] > 0


def _gpu_of_this_process() -> int:
    """Raises: ValueError where torchrun has started more processes than the machine has GPUs."""
    mine, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if mine >= there:
        raise ValueError(
            f"torchrun started more processes here than there are GPUs ({there}): --nproc-per-node must be at most "
            f"{there}, or CUDA_VISIBLE_DEVICES= set to nothing, which trains on the CPU"
        )
    return mine


ALONE = Ranks(ONE_PROCESS)


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a network: what is sharded, recomputed and compiled as a unit.

    They are the modules of its lists, and of lists in lists.
    """
    found: list[nn.Module] = []

    def walk(module: nn.Module) -> None:
        for child in module.children():
            if isinstance(module, nn.ModuleList) and not isinstance(child, nn.ModuleList):
                found.append(child)
            else:
                walk(child)

    walk(network)
    return found
