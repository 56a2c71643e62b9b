"""The outline of a task: its model, a batch and its loss by their shapes, without the data.

A plan is made before there is any data, and often for a machine that is not here. Each task's module has a function
`outline(recipe)`; its parts work under torch's fake tensors as well as under real ones.
"""

import importlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_iter

from diptych.core import weights
from diptych.core.spelling import unknown
from diptych.data.source import Source
from diptych.train.recipe import Recipe
from diptych.train.tasks import TASKS

SHORT = 1e13  # operations of a training, at most: small steps of as many take two cores 10 to 20 seconds


@dataclass(frozen=True)
class Chore:
    """What a run does beside its steps, piece by piece.

    Args:
        piece: the largest piece of it, for its memory and its time.
        pieces: how many there are each time that it is done.
    """

    piece: Callable[[Any], Any]
    pieces: float = 1.0


NOTHING = Chore(lambda model: None, 0.0)


@dataclass(frozen=True)
class Outline:
    """What a plan needs to know of a task.

    Args:
        make: the model, as the task makes it, with what is at rest marked so.
        networks: the modules of the model that are called, as `Task.networks`.
        batch: a batch of so many rows, of the right shapes and dtypes.
        loss: (model, batch) -> the scalar to minimise.
        unit, units: what is counted, and how many a row holds.
        validation, sampling: one of them, on the device of the model; of the first its operations are counted, too.
        ending: what is done when the model is finished, beside writing it.
        source: (folder, rows) -> batches of so many rows of data made up there, where reading takes more than copying.
        beside: bytes on the device that are there and not trained.
        data: bytes of data that the process keeps in the host's memory.
        tensor: the largest number of processes that the matrices divide over.
        stream: numbers that a row sends from block to block: what tensor parallelism exchanges.
        remarks: what was assumed, a line each.
    """

    make: Callable[[], nn.Module]
    networks: Callable[[Any], Sequence[nn.Module]]
    batch: Callable[[int], Any]
    loss: Callable[[Any, Any], Tensor]
    unit: str
    units: int = 1
    validation: Chore = NOTHING
    sampling: Chore = NOTHING
    ending: Chore = NOTHING
    source: Callable[[Path, int], Source[Any]] | None = None
    beside: int = 0
    data: int = 0
    tensor: int = 1
    stream: int = 0
    remarks: tuple[str, ...] = ()


def beside(model: nn.Module, made: Any) -> Any:
    """A tensor, or a batch of them, on the device of the model's weights."""
    device = next(model.parameters()).device
    return made.to(device) if isinstance(made, Tensor) else type(made)(*(tensor.to(device) for tensor in made))


def has_outline(recipe: Recipe) -> bool:
    name = TASKS.get(recipe.run.objective)
    return name is not None and hasattr(importlib.import_module(name), "outline")


def outline_of(recipe: Recipe) -> Outline:
    """The outline of the task that a recipe asks for.

    Raises:
        ValueError: an objective that is not known or has no outline, or sizes that cannot be.
    """
    if recipe.run.objective not in TASKS:
        raise unknown("objective", recipe.run.objective, TASKS)
    if not has_outline(recipe):
        raise ValueError(f"the objective {recipe.run.objective} cannot be planned yet")
    found: Outline = importlib.import_module(TASKS[recipe.run.objective]).outline(recipe)
    return found


def numbers_of(outline: Outline) -> int:
    """How many numbers a row of a batch has."""
    with drawing_nothing():
        return sum(tensor.numel() for tensor in tree_iter(outline.batch(1)) if isinstance(tensor, Tensor))


def most_operations(outline: Outline) -> float:
    """Floating-point operations of a row, forward and backward, were each of the model's numbers met by each of the
    row's: not less than they are, but for attention."""
    with weights.outline():
        parameters = sum(parameter.numel() for parameter in outline.make().parameters())
    return 6.0 * parameters * numbers_of(outline)


def drawing_nothing() -> AbstractContextManager[None]:
    """What is drawn inside leaves the random numbers of a run as they are."""
    return torch.random.fork_rng(devices=[])


def is_short(recipe: Recipe) -> bool:
    """Whether a whole training takes a CPU some seconds, as far as its steps go: it would be over before what it could
    have compiled is. A function of the recipe alone, so that whether code is kept from before changes no number."""
    if not has_outline(recipe):
        return False
    return most_operations(outline_of(recipe)) * recipe.run.batch * recipe.run.steps <= SHORT


def channels_last(model: nn.Module) -> nn.Module:
    """The model with its kernels in channels-last order; `Module.to` cannot do that to fake tensors."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.ndim == 4:
                kernel = parameter.detach().contiguous(memory_format=torch.channels_last)
                setattr(module, name, nn.Parameter(kernel, requires_grad=parameter.requires_grad))
    return model
