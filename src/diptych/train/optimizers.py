"""Optimizers: which weights move how, and their state as named tensors that a checkpoint keeps."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from diptych.core.experts import experts_of
from diptych.core.weights import local
from diptych.train.adamw import AdamW
from diptych.train.muon import Muon
from diptych.train.ranks import Ranks
from diptych.train.recipe import OptimizerSettings


def make_optimizers(model: nn.Module, settings: OptimizerSettings, compute: torch.dtype) -> list[Optimizer]:
    """AdamW for everything, or Muon for the hidden matrices and AdamW for the rest (embeddings, kernels, gains).

    All of their state exists from the start, as zeros, so that a checkpoint can be read into it.

    Args:
        compute: the machine's fast dtype, for what Muon multiplies.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    stacks = {id(stack) for experts in experts_of(model) for stack in experts.parameters(recurse=False)}
    is_matrix = {id(p) for p in trained if id(p) in stacks or (p.ndim == 2 and id(p) not in embeddings)}
    is_hidden = is_matrix if settings.name == "muon" else set()
    rest = [p for p in trained if id(p) not in is_hidden]
    decayed = [p for p in rest if p.ndim >= 2 and id(p) not in embeddings]
    plain = [p for p in rest if p.ndim < 2 or id(p) in embeddings]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizers: list[Optimizer] = []
    if rest:
        groups = [group for group in groups if group["params"]]
        betas = (settings.beta1, settings.beta2)
        optimizers.append(AdamW(groups, lr=settings.learning_rate, betas=betas, eps=1e-8, fused=True))
    hidden = [p for p in trained if id(p) in is_hidden]
    if hidden:
        optimizers.append(Muon(hidden, settings.learning_rate, weight_decay=settings.weight_decay, dtype=compute))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                optimizer.state[parameter] = _zeros(optimizer, parameter)
    return optimizers


def _zeros(optimizer: Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """The state before the first step. Moments keep their parameter's layout in memory: fused AdamW walks both in
    memory's order."""
    if isinstance(optimizer, Muon):
        return {"momentum_buffer": torch.zeros_like(parameter)}
    step = torch.zeros((), dtype=torch.float32, device=parameter.device)
    return {"step": step, "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}


def optimizer_tensors(model: nn.Module, optimizers: Iterable[Optimizer]) -> dict[str, Tensor]:
    """The state itself, not a copy, as "<parameter>/<name>"."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{names[id(parameter)]}/{name}": value
        for optimizer in optimizers
        for parameter, state in optimizer.state.items()
        for name, value in state.items()
    }


def gradient_square(parameters: Iterable[Tensor], ranks: Ranks) -> Tensor:
    """The square of the norm of all gradients, as far as this process holds them: (), float64; summed over processes
    it is that of the whole."""
    gradients = _gradients(parameters)
    if not gradients:
        return torch.zeros((), dtype=torch.float64)
    norms = torch.stack(torch._foreach_norm([_rows(local(gradient)) for gradient in gradients])).double().square()
    holders = [ranks.holders(gradient) for gradient in gradients]
    if any(held != 1 for held in holders):
        norms = norms / torch.tensor(holders, device=norms.device)
    return norms.sum()


def _gradients(parameters: Iterable[Tensor]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def _rows(gradient: Tensor) -> Tensor:
    """What has the same norm: of a matrix on a CPU the norms of its rows, since all of it is read by one thread. The
    last axis of anything else may be too short for that: of a convolution it is three numbers."""
    is_shared = gradient.ndim == 2 and gradient.device.type == "cpu"
    return torch.linalg.vector_norm(gradient, dim=-1) if is_shared else gradient


def clipping(norm: float, most: float) -> float:
    """What gradients of that norm are multiplied by so that it is at most `most`; 0 clips nothing."""
    return min(1.0, most / (norm + 1e-6)) if most else 1.0


@torch.no_grad()
def move(
    parameters: Iterable[Tensor],
    optimizers: Iterable[Optimizer],
    learning_rate: float | Tensor,
    scale: float | Tensor,
) -> None:
    """One step of all optimizers with the gradients times `scale`."""
    if isinstance(scale, Tensor) or scale < 1:
        torch._foreach_mul_([local(gradient) for gradient in _gradients(parameters)], scale)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.step()


def allow_recording(optimizers: Iterable[Optimizer]) -> None:
    """Have the optimizers wait for nothing on the device, so that their steps can be recorded (`core.graphs`)."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["capturable"] = True
