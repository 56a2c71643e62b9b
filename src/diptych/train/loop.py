"""The one training loop. It knows a task, an optimizer and a run directory, and nothing of text or images."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from diptych.core.machine_code import compile_beside
from diptych.core.precision import choose
from diptych.core.together import left_out, libraries
from diptych.data.reading import Read, read_ahead
from diptych.data.trouble import Troubles
from diptych.train.card import model_card
from diptych.train.meter import Meter
from diptych.train.optimizers import make_optimizers
from diptych.train.outline import is_short
from diptych.train.ranks import ALONE, Ranks, blocks_of
from diptych.train.recipe import Recipe
from diptych.train.refusal import IN_A_ROW, save_batches
from diptych.train.run import RunDirectory
from diptych.train.samples import refresh
from diptych.train.state import State
from diptych.train.step import Done, Stepper, prepare
from diptych.train.tasks import Task
from diptych.train.tensorboard import Board


@dataclass(frozen=True)
class Progress:
    """What a watcher is told after each step: loss is smoothed over about 50 steps, speed in units a second.

    `share_of_peak` is of the machine's measured peak (None: not counted), `memory` in bytes (0: not known), `figures`
    are the step's own.
    """

    step: int
    steps: int
    loss: float
    learning_rate: float
    speed: float
    unit: str
    seconds_left: float
    validation: dict[str, float]
    share_of_peak: float | None = None
    memory: int = 0
    figures: dict[str, float] = field(default_factory=dict)


Watcher = Callable[[Progress], None]


class Interrupted(Exception):
    """Ctrl-C: the run was saved at `step` and can be resumed."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped at step {step}; the same command goes on from there")
        self.step = step


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """First Ctrl-C sets a flag, so that a step is never cut in two; the second stops at once."""
    asked = False

    def ask(number: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    try:
        before = signal.signal(signal.SIGINT, ask)
    except ValueError:  # not the main thread: nobody can press Ctrl-C here
        yield lambda: False
        return
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)


def train(
    recipe: Recipe,
    task: Task,
    run: RunDirectory,
    watch: Watcher,
    *,
    dtype: str | None = None,
    ranks: Ranks = ALONE,
    meter: Meter | None = None,
) -> dict[str, float]:
    """Train until `recipe.run.steps`, from the newest checkpoint of `run` if it has one.

    Weights and optimizer are float32 (float64 where dtype is); the task's loss is computed under autocast in the
    machine's fast dtype.

    Args:
        meter: counts the operations of the first step, for the share of the machine's peak that the watcher is told.

    Returns:
        The last validation's figures.

    Raises:
        Interrupted: after Ctrl-C, with everything saved.
        ValueError: three steps in a row were not finite, too much data was broken, or a file could not be written;
            the last checkpoint stays.
    """
    settings, model = recipe.run, task.model
    device, compute = choose(str(next(model.parameters()).device), dtype)
    if settings.batch % (ranks.readers * settings.accumulate):
        raise ValueError(
            f"run.batch ({settings.batch}) must be a multiple of {ranks.readers} processes that read "
            f"x run.accumulate ({settings.accumulate})"
        )
    if not task.is_splittable and ranks.readers * settings.accumulate > 1:
        raise ValueError(
            f"the loss of objective {settings.objective} compares all rows of a batch with each other, so a step "
            "cannot be divided: set run.accumulate = 1 and train in one process"
        )
    called = {id(parameter) for network in task.networks for parameter in network.parameters()}
    if ranks.mesh is not None and any(id(parameter) not in called for parameter in model.parameters()):
        raise ValueError("an adapter trains in one process; start the run without torchrun")
    if compute == torch.float64:
        for network in (model, *task.networks):
            network.double()
    ranks.spread(task.networks)
    prepare(task.networks, recompute=settings.recompute, compile=settings.compile, blocks=blocks_of)
    optimizers = make_optimizers(model, recipe.optimizer, compute)
    state = State(model, optimizers, settings.average, with_snapshots=settings.snapshot_every > 0)
    if ranks.is_first:
        run.prepare(recipe)
    ranks.wait()
    steps = run.steps()
    if steps:
        state.restore(run, steps[-1])
    if ranks.is_first:
        run.forget_after(state.step)  # lines of steps that will be made again
    stepper = Stepper(
        task,
        optimizers,
        ranks,
        device,
        compute,
        recipe.optimizer.clip,
        settings.seed,
        None if settings.compile else meter,
        records=settings.records,
    )
    rows = settings.batch // ranks.readers
    size = rows // settings.accumulate
    starts = range(ranks.reader * rows, (ranks.reader + 1) * rows, size)
    reading = read_ahead(
        task.source,
        range(state.step, settings.steps),
        [range(start, start + size) for start in starts],
        settings.workers,
    )
    troubles = Troubles()
    board = Board(run.path, state.step) if settings.tensorboard and ranks.is_first else None
    keeper = Keeper(recipe, task, run, ranks, state, board)
    model.train()
    does_without = is_short(recipe)
    compile_beside([] if does_without else libraries(device, compute, learns=True))
    started, first = time.perf_counter(), state.step
    spent = state.seconds
    waiting = _Waiting(reading)
    with _interrupts() as interrupted, left_out(does_without):
        for step in range(state.step, settings.steps):
            read, waited = waiting.take()
            troubles.saw(rows)
            troubles.add(read.troubles)
            rate = recipe.optimizer.rate(step, settings.steps)
            done = stepper(read.parts, step, rate, waiting.prepare)
            state.advance(done, spent + time.perf_counter() - started)
            is_last = state.step == settings.steps
            if done.refused:
                keeper.refuse(read.parts, done.refused, rate)
            if state.step % settings.log_every == 0 or is_last:
                keeper.log(done, rate, waited, troubles)
            keeper.look(is_last)
            left = (time.perf_counter() - started) / (state.step - first) * (settings.steps - state.step)
            watch(
                Progress(
                    state.step,
                    settings.steps,
                    state.smooth,
                    rate,
                    done.units / done.seconds,
                    task.unit,
                    left,
                    keeper.validation,
                    meter.share_of_peak(done.seconds) if meter else None,
                    meter.memory() if meter else 0,
                    done.figures,
                )
            )
            is_stopped = ranks.any(interrupted())
            keeper.save(is_needed=is_last or is_stopped)
            if is_stopped and not is_last:
                raise Interrupted(state.step)
    return keeper.finish()


class _Waiting:
    """What was read for the next step."""

    def __init__(self, reading: Iterator[Read]) -> None:
        self._reading = reading
        self._next: Read | None = None

    def prepare(self) -> None:
        """Have it at hand, if there is a next step."""
        if self._next is None:
            self._next = next(self._reading, None)

    def take(self) -> tuple[Read, float]:
        """It, and the seconds that were waited for it."""
        asked = time.perf_counter()
        self.prepare()
        assert self._next is not None  # as many are read as there are steps
        read, self._next = self._next, None
        return read, time.perf_counter() - asked


class Keeper:
    """What a run writes: metrics, validation, samples, checkpoints, the best model and the finished one."""

    def __init__(
        self, recipe: Recipe, task: Task, run: RunDirectory, ranks: Ranks, state: State, board: Board | None
    ) -> None:
        self.recipe, self.task, self.run, self.ranks, self.state = recipe, task, run, ranks, state
        self.board = board
        self.validation: dict[str, float] = {}

    def log(self, done: Done, rate: float, waited: float, troubles: Troubles) -> None:
        """One line of metrics of the step just made. `overhead` is the share of the time since the last step that was
        neither forward, backward nor update."""
        line = {
            "step": self.state.step,
            "loss": done.loss,
            "learning_rate": rate,
            "speed": round(done.units / done.seconds, 1),
            "seconds": round(self.state.seconds, 3),
            self.task.unit: self.state.seen,
            "waited": round(waited, 4),
            **done.figures,
            "gradient_norm": done.gradient_norm,
        }
        if troubles.count:
            line["broken"] = troubles.count
        self._write(line)

    def refuse(self, parts: list[Any], name: str, rate: float) -> None:
        """A step whose loss or gradient is not finite has changed nothing; its batch is kept to look at.

        Raises:
            ValueError: at the third in a row.
        """
        step, reader = self.state.step - 1, self.ranks.reader
        path = self.run.refused / f"step-{step:08d}-{reader}.safetensors"
        save_batches(path, parts)
        self._write({"step": self.state.step, "refused": name})
        if self.state.refused >= IN_A_ROW:
            raise ValueError(
                f"{IN_A_ROW} steps in a row were not finite, the last of them step {step}; first not finite: {name}. "
                f"Its batch is {path}; lower optimizer.learning_rate (now {rate:.2e}) or look at the data"
            )

    def look(self, is_last: bool) -> None:
        """Validate and sample where it is time, with the averaged weights where there are some."""
        settings, step = self.recipe.run, self.state.step
        if is_last or (settings.validate_every and step % settings.validate_every == 0):
            with self.state.averaged():
                self.validation = self.task.validate()
            self._write({"step": step, **{f"validation/{name}": value for name, value in self.validation.items()}})
            if settings.keep_best and self.state.is_best(self.task.rank(self.validation)):
                self._save_model(self.run.best)
        if settings.sample_every and (is_last or step % settings.sample_every == 0):
            with self.state.averaged(), self._folder(self.run.samples) as folder:
                self.task.sample(folder, step)
                refresh(folder)
            if self.board:
                self.board.log_samples(self.run.samples, step)
        if settings.snapshot_every and step % settings.snapshot_every == 0:
            self.state.snapshot(self.run.snapshots, self.ranks.is_first)

    def save(self, is_needed: bool) -> None:
        """A checkpoint, where one is due or needed."""
        settings, step = self.recipe.run, self.state.step
        if is_needed or (settings.save_every and step % settings.save_every == 0):
            self.state.save(self.run, self.ranks)
            if self.ranks.is_first:
                self.run.thin(settings.keep, settings.keep_every)

    def finish(self) -> dict[str, float]:
        """The finished model, and the figures of its validation."""
        if not self.validation:
            with self.state.averaged():
                self.validation = self.task.validate()
        self._save_model(self.run.model)
        if self.ranks.is_first:  # a kill after the last checkpoint leaves what it would have removed
            self.run.thin(self.recipe.run.keep, self.recipe.run.keep_every)
        if self.board:
            self.board.close()
        return self.validation

    def _save_model(self, directory: Path) -> None:
        parameters = sum(p.numel() for p in self.task.model.parameters() if p.requires_grad)
        with self.state.averaged(), self._folder(directory.parent) as folder:
            card = model_card(
                self.recipe, self.task.about(), self.validation, self.state.step, self.state.seconds, parameters
            )
            self.task.save(folder / directory.name, card)

    @contextmanager
    def _folder(self, folder: Path) -> Iterator[Path]:
        """The folder to write to: in all processes but the first, one that is thrown away. All take part, since the
        weights are gathered from all."""
        if self.ranks.is_first:
            folder.mkdir(parents=True, exist_ok=True)
            yield folder
        else:
            with TemporaryDirectory() as scratch:
                yield Path(scratch)
        self.ranks.wait()

    def _write(self, line: dict[str, Any]) -> None:
        if self.ranks.is_first:
            self.run.log(line)
        if self.board:
            self.board.log({name: value for name, value in line.items() if not isinstance(value, str)})
