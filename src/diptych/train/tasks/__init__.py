"""One file a kind of training: data, model and objective put together for the loop.

A task is all that the loop knows of a panel.
"""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from diptych.core.spelling import unknown
from diptych.data.source import Source
from diptych.train.card import About
from diptych.train.recipe import Recipe

TASKS = {
    "next-token": "diptych.train.tasks.next_token",
    "autoencoder": "diptych.train.tasks.autoencoder",
    "diffusion": "diptych.train.tasks.diffusion",
    "classifier": "diptych.train.tasks.classifier",
    "contrastive": "diptych.train.tasks.contrastive",
}


class Task(Protocol):
    """What is trained, on what, towards what.

    Attributes:
        model: everything that a checkpoint of the run keeps.
        networks: the modules in it that are called; the loop shards, recomputes and compiles these.
        unit: what `count` counts: "tokens" or "pictures".
        is_splittable: whether a batch's loss is the weighted mean of its parts' losses.
        remarks: what a person should know before the training starts, a line each.
        source: where batches come from: named tuples of CPU tensors, which the loop moves to the device.
    """

    model: nn.Module
    unit: str
    is_splittable: bool
    remarks: Sequence[str]

    @property
    def networks(self) -> Sequence[nn.Module]: ...

    @property
    def source(self) -> Source[Any]: ...

    def count(self, batch: Any) -> int:
        """Units in a batch: what its loss is the mean over."""
        ...

    def loss(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to minimise, a mean over the batch's units, and named figures for the log, detached scalars.

        Both follow from the batch, the weights and torch's own random numbers: on a GPU the operations are recorded
        once and replayed, so that what Python does beside them is not done again.
        """
        ...

    def validate(self) -> dict[str, float]:
        """Figures on held-out data; the same for the same weights."""
        ...

    def rank(self, figures: dict[str, float]) -> float:
        """One number of a validation to tell the best by: lower is better."""
        ...

    def sample(self, directory: Path, step: int) -> None:
        """Write something that a person can look at, named by the step."""
        ...

    def about(self) -> About:
        """What the model card says of this kind of model."""
        ...

    def save(self, directory: Path, card: str) -> None:
        """Write the finished checkpoint from the weights now in `model`."""
        ...


def build(recipe: Recipe) -> Task:
    """The task that a recipe asks for, with its data found and its sizes checked."""
    if recipe.run.objective not in TASKS:
        raise unknown("objective", recipe.run.objective, TASKS)
    if "adapter" in recipe.tables and recipe.run.objective != "next-token":
        raise ValueError(f"{recipe.where('adapter')}: only the objective next-token trains adapters so far")
    module = importlib.import_module(TASKS[recipe.run.objective])
    task: Task = module.build(recipe)
    return task
