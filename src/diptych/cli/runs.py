"""`diptych runs`: training runs listed, one drawn in full, several laid over each other."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diptych.cli import UsageError, frame, table

if TYPE_CHECKING:
    from diptych.train.history import Run

RUNS = Path("runs")
Folder = Annotated[Path | None, typer.Option("--in", help="The folder of the runs. [runs]", metavar="FOLDER")]
Json = Annotated[bool, typer.Option("--json", help="JSON for machines, on standard output.")]
By = Annotated[str, typer.Option(help="What the curves run along: step, time, tokens, pictures.")]
Png = Annotated[Path | None, typer.Option(help="Draw the curves into this file, too (.png).")]
LOSS_ROWS, ROWS = 12, 7  # lines of text of a drawing
WIDEST = 110  # columns of a drawing: a wider one only looks stretched

app = frame.application("Look at training runs. Without a command: list them.")


@app.callback(invoke_without_command=True)
def runs(context: typer.Context, folder: Folder = None, json: Json = False) -> None:
    """List training runs, the newest first; 'show' and 'compare' look closer."""
    if context.invoked_subcommand:
        if json:
            raise UsageError(f"--json stands behind the command: 'diptych runs {context.invoked_subcommand} --json'")
        context.obj = folder
        return
    from diptych.train.history import list_runs

    found = list_runs(folder or RUNS)
    if json:
        for run in found:
            frame.json_line(_facts(run))
    elif found:
        _list(found)
    else:
        print(f"there are no runs in {folder or RUNS}")


@app.command()
def show(
    context: typer.Context,
    run: Annotated[str, typer.Argument(help="Its name in the folder of the runs, or its path.")],
    by: By = "step",
    png: Png = None,
    sheet: Annotated[Path | None, typer.Option(help="The pictures across the training, as one (.png).")] = None,
    page: Annotated[Path | None, typer.Option(help="The texts across the training, as one page (.md).")] = None,
    folder: Folder = None,
    json: Json = False,
) -> None:
    """Draw the curves of one run, with its recipe's key facts and its samples."""
    _check_by(by)
    png, sheet, page = frame.output(png, ".png"), frame.output(sheet, ".png"), frame.output(page, ".md")
    found = _find(run, folder or context.obj or RUNS)
    if json:
        frame.json_line({**_facts(found), "recipe": found.recipe, "made_with": found.made_with})
        for line in found.lines:
            frame.json_line(line)
    else:
        _show(found, by)
    made = [*_draw_png([found], by, png), *_write_samples(found, sheet, page)]
    _tell(made, json)


@app.command()
def average(
    context: typer.Context,
    run: Annotated[str, typer.Argument(help="Its name in the folder of the runs, or its path.")],
    length: Annotated[float, typer.Argument(help="What the average spans, as a share of the training: 0.01 to 0.25.")],
    out: Annotated[Path, typer.Option(help="Where the checkpoint goes, a folder that does not exist yet.")],
    folder: Folder = None,
) -> None:
    """Average the weights of a finished run anew, over a length chosen now (needs run.snapshot_every)."""
    if out.exists():
        raise UsageError(f"'{out}' exists; name a folder that does not")
    if not out.parent.is_dir():
        raise UsageError(f"the output folder '{out.parent}' does not exist; create it or choose another")
    found = _find(run, folder or context.obj or RUNS)
    from diptych.train.averages import average_model

    average_model(found.path, length, out)
    print(f"{out}: the model of {found.path}, averaged over {length:g} of its training")


@app.command()
def compare(
    context: typer.Context,
    runs: Annotated[list[str], typer.Argument(help="Two runs or more.", metavar="RUN RUN...")],
    by: By = "step",
    png: Png = None,
    folder: Folder = None,
    json: Json = False,
) -> None:
    """Lay the curves of runs over each other, with their figures and what differs in their recipes."""
    from diptych.train.history import differences

    _check_by(by)
    if len(runs) < 2:
        raise UsageError("name at least two runs to compare")
    png = frame.output(png, ".png")
    found = [_find(run, folder or context.obj or RUNS) for run in runs]
    if json:
        different = [{"setting": name, "values": values} for name, values in differences(found)]
        frame.json_line({"runs": [_facts(run) for run in found], "differences": different})
    else:
        _compare(found, by)
    _tell(_draw_png(found, by, png), json)


# ---- what is said of a run ---------------------------------------------------------------------------------------


def _facts(run: "Run") -> dict[str, Any]:
    from diptych.train.history import VALIDATION, checkpoints

    bests = {name: run.best(VALIDATION + name) for name in run.validation_names}
    return {
        "name": run.name,
        "path": str(run.path),
        "objective": run.objective,
        "state": run.state,
        "step": run.step,
        "steps": run.steps,
        "loss": run.loss,
        "validation": {
            name: {"last": run.last(VALIDATION + name), "best": best[1], "best_step": best[0]}
            for name, best in bests.items()
            if best
        },
        "seconds": run.seconds,
        "checkpoints": checkpoints(run.path),
        "bytes": run.size,
        "changed": run.changed,
        "troubles": list(run.troubles),
    }


def _list(found: list["Run"]) -> None:
    """A table: on a terminal in colours, with as many columns as fit, and below it what is wrong with a run."""
    from diptych.train.history import VALIDATION

    heading = ["name", "objective", "step", "state", "loss", "validation", "best", "time", "size"]
    rows = []
    for run in found:
        name = next(iter(run.validation_names), None)
        best = run.best(VALIDATION + name) if name else None
        rows.append(
            [
                run.name,
                run.objective or "?",
                f"{run.step}/{'?' if run.steps is None else run.steps}",
                run.state,
                _figure(run.loss),
                _figure(run.last(VALIDATION + name) if name else None),
                _figure(best[1] if best else None),
                "-" if run.seconds is None else _short_time(run.seconds),
                _size(run.size),
            ]
        )
    if not frame.is_terminal(sys.stdout):
        wrong = ["; ".join(run.troubles) for run in found]
        table.plain([[*heading, "what is wrong"], *([*row, said] for row, said in zip(rows, wrong, strict=True))])
        return
    for dropped in ("size", "objective", "best", "time"):  # the least of them first
        if table.width([heading, *rows]) > frame.columns():
            place = heading.index(dropped)
            heading, *rows = ([*row[:place], *row[place + 1 :]] for row in [heading, *rows])
    table.ruled([heading, *rows])
    for run in found:
        for trouble in run.troubles:
            print(f"{run.name}: {trouble}")


def _show(run: "Run", by: str) -> None:
    from diptych.cli.train import duration
    from diptych.train.history import VALIDATION, checkpoints, samples

    reached = f"step {run.step:,}" + (f" of {run.steps:,}" if run.steps else "")
    print(frame.bold(f"{run.name}: {run.objective or 'unknown objective'}, {reached}, {run.state}"))
    for trouble in run.troubles:
        print(f"  wrong        {trouble}")
    rows = list(_key_facts(run))
    if run.seconds is not None:
        rows.append(("time", duration(run.seconds)))
    if run.loss is not None:
        rows.append(("loss", f"{_figure(run.loss)} (smoothed)"))
    if load := run.points("busiest_expert"):
        start, worst = load[0][1], max(value for _, value in load[-max(1, len(load) // 10) :])
        rows.append(
            ("experts", f"the busiest had {start:.2f} times the mean load at first, at most {worst:.2f} at the end")
        )
    for name in run.validation_names:
        last, best = run.last(VALIDATION + name), run.best(VALIDATION + name)
        if best:
            rows.append(("validation", f"{name} {_figure(last)}, best {_figure(best[1])} at step {best[0]:,}"))
    kept = ", ".join(f"{step:,}" for step in checkpoints(run.path))
    rows.append(("on disk", f"{_size(run.size)}" + (f", checkpoints of steps {kept}" if kept else "")))
    for ending, kind in ((".png", "sheet"), (".txt", "page")):
        if steps := [step for step, _ in samples(run.path / "samples", ending)]:
            said = f"{len(steps)} of steps {steps[0]:,} to {steps[-1]:,}" if len(steps) > 1 else f"of step {steps[0]:,}"
            made = run.path / "samples" / ("sheet.png" if kind == "sheet" else "page.md")
            rows.append(
                ("samples", f"{said}; " + (f"{made}" if made.is_file() else f"--{kind} lays them side by side"))
            )
    for name, words in rows:
        print(f"  {name:<12} {words}")
    if run.lines:
        _draw([run], by)


def _key_facts(run: "Run") -> Iterator[tuple[str, str]]:
    """The settings that one asks for first, in a line each."""
    settings, optimizer = run.recipe.get("run", {}), run.recipe.get("optimizer", {})
    if settings:
        start = f", from {settings['init_from']}" if settings.get("init_from") else ""
        average = f", average {settings['average']}" if settings.get("average") else ""
        yield "run", f"batch {settings.get('batch', '?')}, seed {settings.get('seed', '?')}{average}{start}"
    if optimizer:
        shape = (
            f"warm-up {optimizer.get('warmup', '?')}, {optimizer.get('shape', '?')} decay {optimizer.get('decay', '?')}"
        )
        yield "optimizer", f"{optimizer.get('name', '?')}, learning rate {optimizer.get('learning_rate', '?')}, {shape}"
    for section in ("model", "data"):
        if chosen := run.recipe.get(section):
            yield section, _shortened(", ".join(f"{name} {_plain(value)}" for name, value in chosen.items()))
    made = run.made_with
    if made:
        commit = f", commit {made['git_commit'][:10]}" if isinstance(made.get("git_commit"), str) else ""
        yield "made with", f"diptych {made.get('diptych', '?')}, torch {made.get('torch', '?')}{commit}"


def _compare(found: list["Run"], by: str) -> None:
    from diptych.train.history import VALIDATION, differences

    _draw(found, by)
    names = [run.name if sum(other.name == run.name for other in found) == 1 else str(run.path) for run in found]
    rows = [["figure", *names]]
    rows.append(["state", *(run.state for run in found)])
    rows.append(["step", *(f"{run.step}/{run.steps or '?'}" for run in found)])
    rows.append(["time", *("-" if run.seconds is None else _short_time(run.seconds) for run in found)])
    rows.append(["loss, smoothed", *(_figure(run.loss) for run in found)])
    for name in dict.fromkeys(name for run in found for name in run.validation_names):
        bests = [run.best(VALIDATION + name) for run in found]
        rows.append([name, *(_figure(run.last(VALIDATION + name)) for run in found)])
        rows.append(["  best", *(f"{_figure(best[1])} at {best[0]}" if best else "-" for best in bests)])
    print()
    table.show(rows)
    different = differences(found)
    print()
    if different:
        table.show([["setting", *names], *([name, *map(_plain, values)] for name, values in different)])
    else:
        print("their recipes are the same")


# ---- where runs are, and what is made of them --------------------------------------------------------------------


def _find(name: str, folder: Path) -> "Run":
    """A run by its name in the folder, or by its path."""
    from diptych.core.spelling import nearest
    from diptych.train.history import is_run, read_run

    for path in (folder / name, Path(name)):
        if path.is_dir():
            if not is_run(path):
                raise ValueError(f"'{path}' holds no run: it lacks recipe.json, metrics.jsonl and checkpoints")
            return read_run(Path(str(path.resolve())) if not path.name else path)
    known = sorted(path.name for path in folder.iterdir() if path.is_dir() and is_run(path)) if folder.is_dir() else []
    guess = nearest(name, known)
    hint = f"; did you mean '{guess}'?" if guess else ""
    raise ValueError(
        f"there is no run '{name}' in '{folder}'{hint}{' Known: ' if hint else '; known: '}{', '.join(known) or 'none'}"
    )


def _check_by(by: str) -> None:
    from diptych.core.spelling import unknown
    from diptych.train.curves import BY

    if by not in BY:
        raise UsageError(unknown("--by", by, BY))


def _draw(found: list["Run"], by: str) -> None:
    from diptych.cli.plot import draw
    from diptych.train.curves import panels

    width = min(WIDEST, frame.columns())
    for panel in panels(found, by):
        rows = LOSS_ROWS if panel.title == "training loss" else ROWS
        title, *lines = draw(panel, width, rows, has_colour=frame.has_colour(sys.stdout))
        print(f"\n{frame.bold(title)}", *lines, sep="\n")


def _draw_png(found: list["Run"], by: str, png: Path | None) -> list[Path]:
    if png is None:
        return []
    from diptych.train.chart import save_chart
    from diptych.train.curves import panels

    save_chart(panels(found, by), " and ".join(run.name for run in found), png)
    return [png]


def _write_samples(run: "Run", sheet: Path | None, page: Path | None) -> list[Path]:
    made = []
    if sheet is not None:
        from diptych.train.samples import contact_sheet, save_sheet

        picture = contact_sheet(run.path / "samples")
        if picture is None:
            raise ValueError(f"the run '{run.path}' has no pictures among its samples")
        save_sheet(picture, sheet)
        made.append(sheet)
    if page is not None:
        from diptych.core.files import write_atomically
        from diptych.train.samples import page as page_of

        text = page_of(run.path / "samples")
        if not text:
            raise ValueError(f"the run '{run.path}' has no texts among its samples")
        write_atomically(page, text.encode())
        made.append(page)
    return made


def _tell(made: list[Path], is_json: bool) -> None:
    for path in made:
        (frame.say if is_json else print)(f"{path}: written")


# ---- words -------------------------------------------------------------------------------------------------------


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _short_time(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d}"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _plain(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} {_plain(entry)}" for name, entry in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_plain, value)) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _shortened(words: str) -> str:
    width = max(40, frame.columns() - 16)
    return words if len(words) <= width else f"{words[: width - 1]}…"
