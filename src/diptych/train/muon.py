"""Muon: momentum whose every update is made orthogonal, for the matrices of hidden layers (Jordan et al. 2024).

torch has one (`torch.optim.Muon`); it iterates in bfloat16 wherever it runs, which costs a CPU without bfloat16
products a third of its training time, and it takes matrices one by one. This one iterates in the dtype that it is
given and takes matrices of one shape together.
"""

import math
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

from diptych.core.weights import local, mesh_of, whole
from diptych.train.adamw import Uncompiled

QUINTIC = (
    3.4445,
    -4.7750,
    2.0315,
)  # chosen to lift small singular values fast; five rounds bring all to about 0.7..1.2


def orthogonalise(matrices: Tensor, dtype: torch.dtype, rounds: int = 5) -> Tensor:
    """U V^T of each matrix U S V^T, nearly: every singular value comes out between about 0.7 and 1.2.

    The quintic Newton-Schulz iteration X <- aX + (b XX^T + c (XX^T)^2) X of Jordan et al. 2024.

    Args:
        matrices: (N, rows, columns).
        dtype: of the iteration; bfloat16 is exact enough.
    """
    a, b, c = QUINTIC
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if is_tall else matrices).to(dtype)  # wide: XX^T is the smaller of the two products
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(rounds):
        square = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x.mT if is_tall else x).to(matrices.dtype)


class Muon(Uncompiled):
    """Nesterov momentum, orthogonalised, then scaled to the size of an AdamW update (Liu et al. 2025, sec. 2.2), so
    that one learning rate suits both.

    Args:
        parameters: matrices, and stacks of them (..., rows, columns), each of which is made orthogonal by itself.
        weight_decay: decoupled.
        dtype: of the orthogonalisation.

    Raises:
        ValueError: for a parameter that is not a matrix.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        learning_rate: float,
        *,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        super().__init__(parameters, {"lr": learning_rate, "weight_decay": weight_decay, "momentum": momentum})
        self.dtype = dtype
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim not in (2, 3):
                    raise ValueError(f"Muon takes matrices, not a tensor of shape {tuple(parameter.shape)}")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            momentum, rate = group["momentum"], group["lr"]
            alike: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                buffer = state["momentum_buffer"].lerp_(parameter.grad, 1 - momentum)
                alike[parameter.shape].append((parameter, parameter.grad.lerp(buffer, momentum)))
            for shape, pairs in alike.items():
                # A sharded update is gathered: the orthogonal form of a part is not the part of the orthogonal form.
                stacked = torch.stack([whole(update) for _, update in pairs])
                updates = orthogonalise(stacked.flatten(0, -3), self.dtype).view(stacked.shape)
                size = 0.2 * math.sqrt(max(shape[-2:]))
                for (parameter, _), update in zip(pairs, updates, strict=True):
                    # What this process holds of them: each number moves by itself.
                    here, change = local(parameter), local(_laid_as(update, parameter))
                    here.mul_(1 - rate * group["weight_decay"])
                    if isinstance(rate, Tensor):  # on the device, in a step that is recorded
                        here.sub_(change * (rate * size))
                    else:
                        here.add_(change, alpha=-rate * size)


def _laid_as(update: Tensor, parameter: Tensor) -> Tensor:
    """An update that every process has whole, laid over them as its parameter is."""
    mesh = mesh_of(parameter)
    if mesh is None:
        return update
    from torch.distributed.tensor import distribute_tensor

    placements = parameter.placements  # type: ignore[attr-defined]
    return distribute_tensor(update, mesh, placements, src_data_rank=None)
