"""The one training loop. It knows a task, an optimizer and a run directory, and nothing of text or images."""

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diptych.core.precision import choose
from diptych.train.card import model_card
from diptych.train.muon import Muon
from diptych.train.recipe import OptimizerSettings, Recipe
from diptych.train.run import Average, RunDirectory, optimizer_tensors, restore_optimizers
from diptych.train.tasks import Task


@dataclass(frozen=True)
class Progress:
    """What a watcher is told after each step: loss is smoothed over about 50 steps, speed in units a second.

    `share_of_peak` is of the machine's measured peak (None: not counted), `memory` in bytes (0: not known).
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


Watcher = Callable[[Progress], None]


def make_optimizers(
    model: nn.Module, settings: OptimizerSettings, compute: torch.dtype
) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon for the hidden matrices and AdamW for the rest (embeddings, kernels, gains).

    Args:
        compute: the machine's fast dtype, for what Muon multiplies.
    """
    betas = (settings.beta1, settings.beta2)
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for_muon = [p for p in trained if settings.name == "muon" and p.ndim == 2 and id(p) not in embeddings]
    rest = [p for p in trained if not any(p is other for other in for_muon)]
    decayed = [p for p in rest if p.ndim >= 2 and id(p) not in embeddings]
    plain = [p for p in rest if p.ndim < 2 or id(p) in embeddings]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    optimizers: list[torch.optim.Optimizer] = []
    if groups:
        optimizers.append(torch.optim.AdamW(groups, lr=settings.learning_rate, betas=betas, eps=1e-8, fused=True))
    if for_muon:
        optimizers.append(
            Muon(for_muon, settings.learning_rate, weight_decay=settings.weight_decay, dtype=compute)
        )
    return optimizers


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


@contextmanager
def _weights(model: nn.Module, weights: dict[str, Tensor] | None) -> Iterator[None]:
    """Run a block with other weights in the model, in evaluation mode, without gradients."""
    before = {name: value.detach().clone() for name, value in model.state_dict().items()} if weights else None
    if weights:
        model.load_state_dict(weights)
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        if before:
            model.load_state_dict(before)
        model.train()


def train(
    recipe: Recipe, task: Task, run: RunDirectory, watch: Watcher, *, dtype: str | None = None
) -> dict[str, float]:
    """Train until `recipe.run.steps`, from the newest checkpoint of `run` if it has one.

    Weights and optimizer are float32; the task's loss is computed under autocast in the machine's fast dtype.

    Returns:
        The last validation's figures.

    Raises:
        Interrupted: after Ctrl-C, with everything saved.
        ValueError: the loss or its gradient is not finite; the last checkpoint stays.
    """
    settings, model = recipe.run, task.model
    device, compute = choose(str(next(model.parameters()).device), dtype)
    run.prepare(recipe)
    optimizers = make_optimizers(model, recipe.optimizer, compute)
    average = Average(model, settings.average) if settings.average else None
    first, spent = 0, 0.0
    if steps := run.steps():
        first, spent = _resume(run, steps[-1], model, optimizers, average)
    else:
        run.forget_after(0)  # of a start that did not come to its first checkpoint
    model.train()
    smooth: float | None = None
    validation: dict[str, float] = {}
    started = time.perf_counter()

    def checkpoint(step: int) -> None:
        parts = {"weights": model.state_dict(), "optimizer": optimizer_tensors(optimizers)}
        if average:
            parts["average"] = average.weights
        run.save(step, parts, {"seconds": spent + time.perf_counter() - started}, settings.keep)

    with _interrupts() as interrupted:
        for step in range(first, settings.steps):
            before = time.perf_counter()
            rate = recipe.optimizer.rate(step, settings.steps)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = rate
            batch = task.batch(step)
            torch.manual_seed(settings.seed + 1_000_003 * (step + 1))  # dropout is a function of the step, too
            with torch.autocast(device.type, compute, enabled=compute != torch.float32):
                loss, figures = task.loss(batch, step)
            value = loss.item()
            _check_finite("loss", value, step, rate)
            loss.backward()
            if recipe.optimizer.clip:
                norm = nn.utils.clip_grad_norm_(model.parameters(), recipe.optimizer.clip).item()
                _check_finite("gradient", norm, step, rate)
                figures["gradient_norm"] = norm
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            if average:
                average.update(model, step)
            done = step + 1
            seconds = time.perf_counter() - before
            smooth = value if smooth is None else smooth + (value - smooth) * 0.04
            speed = task.count(batch) / seconds
            ended = done == settings.steps
            if ended or (settings.validate_every and done % settings.validate_every == 0):
                with _weights(model, average.weights if average else None):
                    validation = task.validate()
                run.log({"step": done, **{f"validation/{name}": figure for name, figure in validation.items()}})
            if settings.sample_every and (ended or done % settings.sample_every == 0):
                with _weights(model, average.weights if average else None):
                    task.sample(run.samples, done)
            if done % 10 == 0 or ended:
                elapsed = spent + time.perf_counter() - started
                figures = {name: round(figure, 6) for name, figure in figures.items()}
                about = {"learning_rate": rate, "speed": round(speed, 1), "seconds": round(elapsed, 1)}
                run.log({"step": done, "loss": round(value, 6), **about, **figures})
            left = (time.perf_counter() - started) / (done - first) * (settings.steps - done)
            watch(Progress(done, settings.steps, smooth, rate, speed, task.unit, left, validation))
            is_stopped = interrupted()
            if ended or is_stopped or (settings.save_every and done % settings.save_every == 0):
                checkpoint(done)
            if is_stopped and not ended:
                raise Interrupted(done)
    with _weights(model, average.weights if average else None):
        validation = validation or task.validate()
        seconds = spent + time.perf_counter() - started
        parameters = sum(parameter.numel() for parameter in model.parameters())
        done = max(first, settings.steps)
        task.save(run.model, model_card(recipe, task.about(), validation, done, seconds, parameters))
    return validation


def _check_finite(name: str, value: float, step: int, rate: float) -> None:
    if not math.isfinite(value):
        raise ValueError(f"the {name} of step {step} is {value}; lower optimizer.learning_rate (now {rate:.2e})")


def _resume(
    run: RunDirectory, step: int, model: nn.Module, optimizers: list[torch.optim.Optimizer], average: Average | None
) -> tuple[int, float]:
    parts, state = run.load(step)
    model.load_state_dict(parts["weights"])
    restore_optimizers(optimizers, parts["optimizer"])
    if average:  # one that is switched on in mid-run begins with the weights as they are
        for name, value in parts.get("average", parts["weights"]).items():
            average.weights[name].copy_(value)
    run.forget_after(step)
    return step, state["seconds"]
