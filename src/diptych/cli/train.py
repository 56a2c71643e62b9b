"""`diptych train`: a recipe becomes a model, with a bar that says how far it is and a run that can be stopped."""

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diptych.cli import UsageError, frame

if TYPE_CHECKING:
    from diptych.train.loop import Progress
    from diptych.train.recipe import Recipe

RUNS = Path("runs")
PAUSE = 20.0  # seconds between lines in a pipe


def train(
    recipe: Annotated[Path, typer.Argument(help="A TOML file that describes the run.")],
    changes: Annotated[
        list[str] | None, typer.Argument(help="Settings to change, like run.steps=100.", metavar="[section.key=value]")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder. [runs/NAME OF THE RECIPE]")] = None,
    seed: Annotated[int | None, typer.Option(help="In place of the recipe's run.seed.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over; the old run is moved aside.")] = False,
    show: Annotated[
        bool, typer.Option("--show", help="Print all settings and where each came from, and stop.")
    ] = False,
    threads: Annotated[int | None, typer.Option(help="CPU threads. [all]")] = None,
    dtype: frame.Dtype = None,
) -> None:
    """Train a model from a recipe; the same command goes on with a run that was stopped."""
    from diptych.train.recipe import read_recipe

    if not recipe.is_file():
        raise ValueError(f"there is no recipe at '{recipe}'")
    if threads is not None and threads < 1:
        raise UsageError(f"threads must be at least 1, not {threads}")
    overrides = [*(changes or []), *([] if seed is None else [f"run.seed={seed}"])]
    with frame.settings():
        chosen = read_recipe(recipe, overrides)
    if show:
        from diptych.train.shown import shown

        with frame.settings():
            print(shown(chosen), end="")
        return
    if out is not None and not out.parent.is_dir():
        raise UsageError(f"the output folder '{out.parent}' does not exist; create it or choose another")
    folder = out or RUNS / chosen.name
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"'{folder}' is a file; name a folder for the run")
    import torch

    from diptych.core.precision import choose
    from diptych.train.loop import Interrupted
    from diptych.train.loop import train as run_loop
    from diptych.train.plan import check_start
    from diptych.train.ranks import Ranks
    from diptych.train.run import RunDirectory
    from diptych.train.tasks import build

    with frame.settings():
        device, _ = choose(None, dtype)
        ranks = Ranks.join(chosen.parallel, device)
    is_first = ranks.is_first
    if threads:
        torch.set_num_threads(threads)
    if ranks.mesh is None:
        with _refusing(chosen):
            check_start(chosen, folder, dtype=dtype)
    with _refusing(chosen):
        task = build(chosen)
    if fresh and is_first:
        _move_aside(folder)
    ranks.wait()
    if is_first:
        for remark in task.remarks:
            frame.say(remark)
    run = RunDirectory(folder)
    done = run.steps()
    if is_first and done and done[-1] >= chosen.run.steps:
        frame.say(f"the run in {folder} has all its {chosen.run.steps} steps; --fresh starts over")
    elif is_first and done:
        frame.say(f"going on from step {done[-1]} of the run in {folder}; --fresh starts over")
    started = time.perf_counter()
    try:
        with _watching(is_first) as watch:
            figures = run_loop(chosen, task, run, watch, dtype=dtype, ranks=ranks)
    except Interrupted as stopped:
        raise KeyboardInterrupt(
            f"interrupted; {folder} is saved at step {stopped.step}, and the same command goes on from there"
        ) from None
    except KeyboardInterrupt:
        saved = run.steps()
        kept = f"{folder} is saved at step {saved[-1]}" if saved else "no step was saved"
        raise KeyboardInterrupt(f"interrupted; {kept}") from None
    finally:
        ranks.leave()
    if not is_first:
        return
    about = ", ".join(f"{name} {figure:.4g}" for name, figure in figures.items())
    minutes = (time.perf_counter() - started) / 60
    print(f"{run.model}: {chosen.run.steps} steps, {minutes:.1f} minutes{'; validation: ' if about else ''}{about}")


@contextmanager
def _refusing(recipe: "Recipe") -> Iterator[None]:
    """What is wrong in the recipe is wrong usage, what is missing on the machine is a failure."""
    try:
        yield
    except ValueError as error:
        if str(error).startswith(str(recipe.path)) or str(error).startswith("unknown objective"):
            raise UsageError(str(error)) from error
        raise


def _move_aside(folder: Path) -> None:
    """An old run is never lost: it becomes NAME.old-1, or the next number that is free."""
    if not folder.exists():
        return
    number = 1
    while (aside := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    folder.rename(aside)
    frame.say(f"the old run is now {aside}")


@contextmanager
def _watching(is_first: bool) -> Iterator[Callable[["Progress"], None]]:
    """A bar on a terminal that goes when the run is done; in a pipe a line now and then; one process tells for all."""
    if not is_first:
        yield lambda progress: None
        return
    if frame.is_terminal(sys.stderr):
        with _bar() as watch:
            yield watch
        return
    last = -math.inf  # the first step is told: it says that the run has begun
    reported: dict[str, float] = {}

    def tell(progress: "Progress") -> None:
        nonlocal last, reported
        now = time.perf_counter()
        is_news = progress.validation != reported or progress.step == progress.steps
        if is_news or now - last >= PAUSE:
            frame.say(f"step {progress.step}/{progress.steps}  {line(progress)}")
            last, reported = now, progress.validation

    yield tell


@contextmanager
def _bar() -> Iterator[Callable[["Progress"], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(bar_width=20), TextColumn("{task.fields[about]}"))
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None, about="starting")

        def draw(progress: "Progress") -> None:
            bar.update(task, completed=progress.step, total=progress.steps, about=line(progress))

        yield draw


def line(progress: "Progress") -> str:
    """Loss, learning rate, speed, time left and the last validation."""
    parts = [
        f"loss {progress.loss:.4f}",
        f"rate {progress.learning_rate:.2e}",
        f"{progress.speed:,.0f} {progress.unit}/s",
        f"{duration(progress.seconds_left)} left",
    ]
    parts += [f"{name} {figure:.4g}" for name, figure in list(progress.validation.items())[:2]]
    return "  ".join(parts)


def duration(seconds: float) -> str:
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
