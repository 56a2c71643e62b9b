"""Tensor parallelism: each matrix of a transformer block divided over processes that read the same rows.

The heads of an attention and the hidden units of a feed-forward are divided: what widens by columns, what narrows by
rows (Shoeybi et al. 2019, sec. 3), so that a block costs two sums over the processes. The pieces are torch's own.
"""

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from diptych.core.attention import Attention
from diptych.core.feedforward import FeedForward

HEADS = 1  # the axis of (B, heads, T, head_dim) that is divided


def divide(network: nn.Module, mesh: DeviceMesh) -> None:
    """Lay every attention and feed-forward of a network over the processes of a one-dimensional mesh.

    Raises:
        ValueError: a number of heads or units that the processes do not divide.
    """
    count = mesh.size()
    for name, module in network.named_modules():
        if isinstance(module, Attention):
            _check(module.num_kv_heads, count, "key-value heads", name)
            plan: dict[str, ParallelStyle] = {part: ColwiseParallel() for part in ("query", "key", "value")}
            plan["output"] = RowwiseParallel()
            for part in ("query_norm", "key_norm"):
                if getattr(module, part) is not None:  # each process norms its own heads with the one gain of all
                    plan[part] = SequenceParallel(sequence_dim=HEADS, use_local_output=True)
            parallelize_module(module, mesh, plan)
            module.num_heads //= count
            module.num_kv_heads //= count
        elif isinstance(module, FeedForward):
            _check(module.down.in_features, count, "hidden units", name)
            wide: dict[str, ParallelStyle] = {
                part: ColwiseParallel() for part in ("gate", "up") if getattr(module, part) is not None
            }
            parallelize_module(module, mesh, wide | {"down": RowwiseParallel()})


def _check(number: int, processes: int, what: str, where: str) -> None:
    if number % processes:
        raise ValueError(
            f"parallel.tensor = {processes} does not divide the {number} {what} of {where}; choose a number that does"
        )
