"""One file a kind of training: data, model and objective put together for the loop.

A task is all that the loop knows of a panel. `batch` is a pure function of the seed and the step, so a run resumes at
any step without replaying the data.
"""

import importlib
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from diptych.core.spelling import unknown
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
        model: everything whose weights move.
        unit: what `count` counts: "tokens" or "pictures".
    """

    model: nn.Module
    unit: str

    def batch(self, step: int) -> Any:
        """The batch of a step."""
        ...

    def count(self, batch: Any) -> int:
        """Units in a batch."""
        ...

    def loss(self, batch: Any, step: int) -> tuple[Tensor, dict[str, float]]:
        """The scalar to minimise, and named figures for the log."""
        ...

    def validate(self) -> dict[str, float]:
        """Figures on held-out data; the same for the same weights."""
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
    module = importlib.import_module(TASKS[recipe.run.objective])
    task: Task = module.build(recipe)
    return task
