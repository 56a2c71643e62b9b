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
from diptych.core.graphs import Graphs
from diptych.train.meter import Meter
from diptych.train.optimizers import allow_recording, clipping, gradient_square, move
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
    """Makes steps. On a CUDA device they are launched as graphs (`core.graphs`), one for each shape of a part and two
    for what follows; there the gradients stay where they are from step to step.

    Args:
        compute: the dtype of the task's loss under autocast, or the weights' own for float32 and float64.
        records: whether steps may be recorded. Those of several processes are not, nor is what reads on the host what
            the device has found: experts, and blocks whose randomness is brought back for recomputation.
    """

    task: Task
    optimizers: Sequence[Optimizer]
    ranks: Ranks
    device: torch.device
    compute: torch.dtype
    clip: float
    seed: int
    meter: Meter | None = None
    records: bool = False

    def __post_init__(self) -> None:
        self._parameters = list(self.task.model.parameters())
        self._experts = experts_of(self.task.model)
        self._graphs = Graphs(self.device, is_on=self.records and self.ranks.mesh is None and not self._experts)
        self._is_recorded = self._graphs.is_on  # as steps begin: gradients stay in place even if recording fails later
        self._rate, self._scale = (torch.zeros((), device=self.device) for _ in range(2))
        if self._is_recorded:
            allow_recording(self.optimizers)
            for parameter in self._parameters:
                parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None

    def __call__(
        self, parts: Sequence[Any], step: int, learning_rate: float, meanwhile: Callable[[], None] = lambda: None
    ) -> Done:
        """Move the weights by one step.

        Each part's mean loss is weighted by its share of what all parts in all processes count, so that however a
        step's rows are divided, the gradient is the same.

        Args:
            meanwhile: what can be done while the device computes; on the CPU it is not done.
        """
        started = time.perf_counter()
        counts = [self.task.count(part) for part in parts]
        (total,) = self.ranks.total(sum(counts))
        means: list[Tensor] = []
        figures: dict[str, Tensor] = {}
        parts = [self._moved(part) for part in parts]
        with self.meter.counting() if self.meter else nullcontext():
            for index, (part, count) in enumerate(zip(parts, counts, strict=True)):
                mean, figures = self._part(part, step, index, count / total * self.ranks.averaged)
                means.append(mean.clone())
        self.ranks.add_up(self._parameters)
        square = self._graphs.call("square", partial(gradient_square, self._parameters, self.ranks))
        if self.is_elsewhere:
            meanwhile()
        *told, square_here = _numbers([*means, *figures.values(), square])  # the one wait for the device
        losses, named = told[: len(parts)], dict(zip(figures, told[len(parts) :], strict=True))
        (loss,) = self.ranks.total(sum(mean * count / total for mean, count in zip(losses, counts, strict=True)))
        (squares,) = self.ranks.sums(square_here)
        norm = math.sqrt(squares) if math.isfinite(squares) else squares
        refused = ""
        if math.isfinite(loss) and math.isfinite(norm):
            self._move(learning_rate, clipping(norm, self.clip))
        else:
            self._zero()
            refused = self._name(parts, step)
            self._zero()
        named |= settle(self._experts, self.ranks.total, is_refused=bool(refused))
        return Done(loss, int(total), norm, named, refused, time.perf_counter() - started)

    @property
    def is_elsewhere(self) -> bool:
        """Whether steps are computed by another device than the processor that tells it to."""
        return self.device.type != "cpu"

    def _part(self, part: Any, step: int, index: int, weight: float) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a part and the task's figures; its gradient times `weight` is added to the parameters'."""
        self._seed(step, index)
        if not self._is_recorded:
            return self._backward(type(part), weight, *part)
        factor = torch.full((), weight, device=self.device)
        return self._graphs.call(type(part).__name__, partial(self._backward, type(part)), factor, *part)

    def _backward(self, kind: Any, weight: float | Tensor, *tensors: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss, figures = self._loss(kind(*tensors))
        (loss * weight).backward()
        return loss.detach(), figures

    def _move(self, learning_rate: float, scale: float) -> None:
        if not self._is_recorded:
            self._update(learning_rate, scale)
            return
        self._rate.fill_(learning_rate)
        self._scale.fill_(scale)
        self._graphs.call("update", partial(self._update, self._rate, self._scale))

    def _update(self, learning_rate: float | Tensor, scale: float | Tensor) -> None:
        move(self._parameters, self.optimizers, learning_rate, scale)
        self._zero()

    def _zero(self) -> None:
        if self._is_recorded:
            torch._foreach_zero_([one.grad for one in self._parameters if one.grad is not None])
        else:
            for one in self._parameters:
                one.grad = None

    def _seed(self, step: int, index: int) -> None:
        """Dropout is a function of the step, of the process and of the part."""
        # torch.manual_seed keeps a traceback for each kind of device that was not used yet, every time.
        sow = torch.manual_seed if self.is_elsewhere else torch.default_generator.manual_seed
        sow(self.seed + 1_000_003 * (step + 1) + 7_919 * index + 104_729 * self.ranks.reader)

    def _loss(self, part: Any) -> tuple[Tensor, dict[str, Tensor]]:
        is_lower = self.compute in (torch.bfloat16, torch.float16)
        with torch.autocast(self.device.type, self.compute if is_lower else torch.bfloat16, enabled=is_lower):
            return self.task.loss(part)

    def _mean(self, part: Any, step: int, index: int) -> Tensor:
        self._seed(step, index)
        return self._loss(part)[0]

    def _moved(self, part: Any) -> Any:
        """A batch on the device; in a float64 run its numbers are float64, too."""
        wide = torch.float64 if self.compute == torch.float64 else None
        if self.device.type == "cuda":  # from pages that stay in memory, so that nobody waits for the copy
            part = type(part)(*(t if t.is_cuda else t.pin_memory() for t in part))
        return type(part)(
            *(t.to(self.device, wide if t.is_floating_point() else None, non_blocking=True) for t in part)
        )

    def _name(self, parts: Sequence[Any], step: int) -> str:
        for index, part in enumerate(parts):
            if name := first_not_finite(self.task.model, partial(self._mean, part, step, index)):
                return name
        return "a tensor of another process" if self.ranks.mesh is not None else "a tensor that is finite now"


def _numbers(values: Sequence[Tensor]) -> list[float]:
    """Tensors of one number, all of them brought to the host at once."""
    found: list[float] = torch.stack([value.detach().double() for value in values]).tolist()
    return found


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
