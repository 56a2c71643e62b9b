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
PIPE = 100  # columns of a line in a pipe
NARROWEST_BAR, WIDEST_BAR = 6, 30


def train(
    recipe: frame.RecipeFile,
    changes: frame.Changes = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder. [runs/NAME OF THE RECIPE]")] = None,
    seed: Annotated[int | None, typer.Option(help="In place of the recipe's run.seed.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over; the old run is moved aside.")] = False,
    show: Annotated[
        bool, typer.Option("--show", help="Print all settings and where each came from, and stop.")
    ] = False,
    threads: frame.Threads = None,
    dtype: frame.Dtype = None,
) -> None:
    """Train a model from a recipe; the same command goes on with a run that was stopped."""
    chosen = frame.recipe(recipe, [*(changes or []), *([] if seed is None else [f"run.seed={seed}"])], threads)
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

    from diptych.core.allocator import keep_freed_memory
    from diptych.core.estimate import headlines
    from diptych.train.loop import Interrupted
    from diptych.train.loop import train as run_loop
    from diptych.train.meter import Meter
    from diptych.train.outline import is_short
    from diptych.train.ranks import Ranks
    from diptych.train.room import check_start
    from diptych.train.run import RunDirectory
    from diptych.train.tasks import build
    from diptych.train.tensorboard import require_tensorboard

    with _refusing(chosen):
        if not is_short(chosen):
            frame.begin_compiling(None, dtype, learns=True)
    device, compute = frame.training_format(dtype)
    with frame.settings():
        ranks = Ranks.join(chosen.parallel, device)
    if ranks.keeps_freed_memory:
        keep_freed_memory()
    is_first = ranks.is_first
    if threads:
        torch.set_num_threads(threads)
    if chosen.run.tensorboard:
        require_tensorboard()
    with _refusing(chosen):
        check_start(chosen, folder, dtype=dtype, ranks=ranks)
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
            meter = Meter(device, compute) if is_first else None
            figures = run_loop(chosen, task, run, watch, dtype=dtype, ranks=ranks, meter=meter)
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
    about = ", ".join(f"{name} {figure:.4g}" for name, figure in headlines(figures).items())
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
        is_news = progress.validation != reported
        if is_news or now - last >= PAUSE or progress.step == progress.steps:
            where = f"step {progress.step}/{progress.steps}  "
            frame.say(where + line(progress, PIPE - len(where)))
            if is_news:
                frame.say(where + validation(progress))
            last, reported = now, progress.validation

    yield tell


@contextmanager
def _bar() -> Iterator[Callable[["Progress"], None]]:
    """One line with a bar that fills what is left of the terminal's width; the last validation below it."""
    from rich.console import Console, Group
    from rich.live import Live
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    console = Console(stderr=True)
    with Live(Text("starting"), console=console, transient=True, refresh_per_second=4) as live:

        def draw(progress: "Progress") -> None:
            where = f"step {progress.step}/{progress.steps}"
            words = line(progress, console.width - len(where) - 2)
            left = console.width - len(where) - len(words) - 4
            row = Table.grid(padding=(0, 1))
            bar = ProgressBar(total=progress.steps, completed=progress.step, width=min(left, WIDEST_BAR))
            row.add_row(where, *([bar] if left >= NARROWEST_BAR else []), words)
            below = [Text(validation(progress), style="dim")] if progress.validation else []
            live.update(Group(row, *below))

        yield draw


def line(progress: "Progress", width: int = PIPE) -> str:
    """Loss, learning rate, load of the busiest expert, speed, share of the machine's peak, memory and time left, as far
    as `width` holds them."""
    busiest = progress.figures.get("busiest_expert")
    share = "" if progress.share_of_peak is None else f"{progress.share_of_peak:.0%} of peak".replace("%", " %")
    parts = {
        "loss": f"loss {progress.loss:.4f}",
        "rate": f"rate {progress.learning_rate:.2e}",
        "load": "" if busiest is None else f"busiest expert {busiest:.2f}",
        "speed": f"{_speed(progress.speed)} {progress.unit}/s",
        "share": share,
        "memory": _bytes(progress.memory) if progress.memory else "",
        "left": f"{duration(progress.seconds_left)} left",
    }
    for dropped in ("memory", "rate", "share", "load", "speed", ""):  # the least of them first
        words = "  ".join(filter(None, parts.values()))
        if len(words) <= width:
            break
        parts.pop(dropped, None)
    return words


def validation(progress: "Progress") -> str:
    from diptych.core.estimate import headlines

    figures = headlines(progress.validation)
    return "validation: " + ", ".join(f"{name} {figure:.4g}" for name, figure in figures.items())


def _speed(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _bytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def duration(seconds: float) -> str:
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
