"""What a run is at a step: weights, optimizer state, averages and counters; what a checkpoint keeps and gives back."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from diptych.core.allocator import give_back
from diptych.core.weights import whole
from diptych.train.averages import Average, PowerAverages, save_snapshot, snapshot_path
from diptych.train.optimizers import optimizer_tensors
from diptych.train.ranks import Ranks
from diptych.train.run import RunDirectory
from diptych.train.step import Done


class State:
    """Args: `average` is the decay of the running average, 0 for none."""

    def __init__(
        self, model: nn.Module, optimizers: Sequence[Optimizer], average: float, *, with_snapshots: bool
    ) -> None:
        self.model, self.optimizers = model, optimizers
        self.average = Average(model, average) if average else None
        self.powers = PowerAverages(model) if with_snapshots else None
        self.step = 0
        self.seconds = 0.0
        self.seen = 0  # tokens or pictures
        self.smooth = 0.0  # the loss, over about 50 steps
        self.best: float | None = None  # of the validations so far
        self.refused = 0  # steps in a row

    def advance(self, done: Done, seconds: float) -> None:
        """Count a step that was made; averages follow the weights unless it was refused."""
        self.seconds = seconds
        self.seen += done.units
        if done.refused:
            self.refused += 1
        else:
            self.refused = 0
            self.smooth = done.loss if not self.smooth else self.smooth + (done.loss - self.smooth) * 0.04
            if self.average:
                self.average.update(self.model, self.step)
            if self.powers:
                self.powers.update(self.model, self.step)
        self.step += 1

    def is_best(self, rank: float) -> bool:
        """Whether a validation's rank (lower is better) is the lowest so far; remembers it."""
        is_best = self.best is None or rank < self.best
        self.best = rank if is_best else self.best
        return is_best

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Everything that is a tensor, by part; not copies."""
        parts = {"weights": self.model.state_dict(), "optimizer": optimizer_tensors(self.model, self.optimizers)}
        if self.average:
            parts["average"] = self.average.weights
        if self.powers:
            parts["powers"] = self.powers.tensors()
        return parts

    def save(self, run: RunDirectory, ranks: Ranks) -> None:
        numbers = {
            "seconds": self.seconds,
            "seen": self.seen,
            "smooth": self.smooth,
            "best": self.best,
            "refused": self.refused,
        }
        give_back()
        run.save(self.step, self.tensors(), numbers, ranks)
        give_back()

    def restore(self, run: RunDirectory, step: int) -> None:
        """The checkpoint of `step`, into the tensors as they lie. An average that the checkpoint has not, since it was
        switched on later, begins with the weights as they are."""
        wanted = self.tensors()
        found = run.parts(step)
        numbers: dict[str, Any] = run.load(step, {name: wanted[name] for name in wanted if name in found})
        self.step, self.seconds, self.smooth = step, numbers["seconds"], numbers["smooth"]
        self.seen, self.best, self.refused = numbers["seen"], numbers["best"], numbers["refused"]
        weights = self.model.state_dict()
        with torch.no_grad():
            for name, part in wanted.items():
                if name not in found:
                    for key, value in part.items():
                        value.copy_(weights[key.partition("/")[2] if name == "powers" else key])

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Run a block with the averaged weights in the model, in evaluation mode, without gradients; and without the
        memory that the steps have freed, as they go on without what the block leaves."""
        give_back()
        before = {}
        if self.average:
            before = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
            self.model.load_state_dict(self.average.weights)
        self.model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            if before:
                self.model.load_state_dict(before)
                before.clear()
            self.model.train()
            give_back()

    def snapshot(self, folder: Path, is_first: bool) -> None:
        """Keep the power averages as they are now."""
        if self.powers:
            gathered = {name: whole(value) for name, value in self.powers.tensors().items()}
            if is_first:
                folder.mkdir(exist_ok=True)
                save_snapshot(snapshot_path(folder, self.step), gathered, self.step)
