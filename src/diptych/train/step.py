"""One optimizer step: parts of a batch forward and backward, their gradients as one, clipped, applied or refused."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from diptych.core.balance import settle
from diptych.core.blocked import leave_uncompiled
from diptych.core.experts import experts_of
from diptych.train.meter import Meter
from diptych.train.optimizers import clip_gradients
from diptych.train.ranks import Ranks
from diptych.train.refusal import first_not_finite
from diptych.train.tasks import Task


class Done(NamedTuple):
    """What a step came to.

    Args:
        loss: mean over everything that the step read, in all processes.
        units: tokens or pictures that it is the mean of.
        gradient_norm: before clipping.
        figures: the task's own, of the last part, and how evenly experts were busy in the whole step.
        refused: the name of the first tensor that was not finite, where the step was refused; else "".
        seconds: forward, backward and update together, without the reading.
    """

    loss: float
    units: int
    gradient_norm: float
    figures: dict[str, float]
    refused: str
    seconds: float


@dataclass
class Stepper:
    """Args: `compute` is the dtype of the task's loss under autocast, or the weights' own for float32 and float64."""

    task: Task
    optimizers: Sequence[Optimizer]
    ranks: Ranks
    device: torch.device
    compute: torch.dtype
    clip: float
    seed: int
    meter: Meter | None = None

    def __call__(self, parts: Sequence[Any], step: int, learning_rate: float) -> Done:
        """Move the weights by one step.

        Each part's mean loss is weighted by its share of what all parts in all processes count, so that however a
        step's rows are divided, the gradient is the same.
        """
        started = time.perf_counter()
        model = self.task.model
        parts = [self._moved(part) for part in parts]
        counts = [self.task.count(part) for part in parts]
        (total,) = self.ranks.total(sum(counts))
        loss = 0.0
        figures: dict[str, float] = {}
        with self.meter.counting() if self.meter else nullcontext():
            for index, (part, count) in enumerate(zip(parts, counts, strict=True)):
                mean, figures = self._loss(part, step, index)
                loss += mean.item() * count / total
                # FSDP takes the mean of the processes' gradients, and the sum is wanted.
                (mean * (count / total * self.ranks.readers)).backward()
        (loss,) = self.ranks.total(loss)
        norm = clip_gradients(model, self.clip, self.ranks)
        refused = ""
        if math.isfinite(loss) and math.isfinite(norm):
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate
                optimizer.step()
        else:
            model.zero_grad(set_to_none=True)
            refused = self._name(parts, step)
        figures |= settle(experts_of(model), self.ranks.total, is_refused=bool(refused))
        model.zero_grad(set_to_none=True)
        return Done(loss, int(total), norm, figures, refused, time.perf_counter() - started)

    def _loss(self, part: Any, step: int, index: int) -> tuple[Tensor, dict[str, float]]:
        # Dropout is a function of the step, of the process and of the part.
        torch.manual_seed(self.seed + 1_000_003 * (step + 1) + 7_919 * index + 104_729 * self.ranks.reader)
        is_lower = self.compute in (torch.bfloat16, torch.float16)
        with torch.autocast(self.device.type, self.compute if is_lower else torch.bfloat16, enabled=is_lower):
            return self.task.loss(part, step)

    def _mean(self, part: Any, step: int, index: int) -> Tensor:
        return self._loss(part, step, index)[0]

    def _moved(self, part: Any) -> Any:
        """A batch on the device; in a float64 run its numbers are float64, too."""
        wide = torch.float64 if self.compute == torch.float64 else None
        return type(part)(
            *(t.to(self.device, wide if t.is_floating_point() else None, non_blocking=True) for t in part)
        )

    def _name(self, parts: Sequence[Any], step: int) -> str:
        for index, part in enumerate(parts):
            if name := first_not_finite(self.task.model, partial(self._mean, part, step, index)):
                return name
        return "a tensor of another process" if self.ranks.mesh is not None else "a tensor that is finite now"


def prepare(networks: Sequence[nn.Module], *, recompute: bool, compile: bool, blocks: Callable[..., Any]) -> None:
    """Lay activation checkpointing and compilation over the blocks, from outside: their code and names stay."""
    if compile:
        leave_uncompiled()
    for network in networks:
        for block in blocks(network):
            if recompute:
                block.forward = _recomputed(block.forward)
            if compile:
                block.compile()


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    from torch.utils.checkpoint import checkpoint

    def again(*inputs: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*inputs, **named)
        return checkpoint(forward, *inputs, use_reentrant=False, **named)

    return again
