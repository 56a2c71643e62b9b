"""Which curves of one or several runs belong into one picture, whoever draws it: the terminal or a PNG."""

from collections.abc import Sequence
from dataclasses import dataclass

from diptych.train.history import VALIDATION, Run, is_larger_better, smoothed

BY = ("step", "time", "tokens", "pictures")
LOG_FROM = 10.0  # times that the largest value is above the smallest, from which on the scale is logarithmic
FEW = 40  # values that are few enough to be shown one by one

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Curve:
    """A line of points; `faint` are the single values that it smooths. `run` counts from 0: it chooses the colour."""

    name: str
    points: Points
    run: int
    faint: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Args:
        title: what is drawn.
        x: what the places count: "steps", "hours", "minutes", "seconds", "tokens", "pictures".
        end: where the longest of the runs ends, for all panels alike; every axis begins at 0.
        curves: at least one, none of them empty.
        is_log: whether the values are spread over so much that only a logarithmic scale shows them.
        note: what to know of the title, like "higher is better".
    """

    title: str
    x: str
    end: float
    curves: tuple[Curve, ...]
    is_log: bool = False
    note: str = ""


def panels(runs: Sequence[Run], by: str = "step") -> list[Panel]:
    """The training loss, each kind of validation figure, and the learning rate, as far as the runs have them.

    Figures that share what stands before "/" share their axes, if there is one run; of several runs, each figure has
    its own.

    Args:
        by: one of `BY`.

    Raises:
        ValueError: a run has no metrics, or they do not count what `by` asks for.
    """
    place = {"time": "seconds"}.get(by, by)
    for run in runs:
        if not run.lines:
            raise ValueError(f"the run '{run.path}' has no metrics to draw")
        if place != "step" and not any(place in line for line in run.lines):
            raise ValueError(f"the metrics of '{run.path}' do not count {by}")
    end = max(line.get(place, 0.0) for run in runs for line in run.lines)
    shown = _shown_time(end) if by == "time" else (1.0, "steps" if by == "step" else by)
    axis = (place, end, *shown)
    found = [_panel("training loss", ["loss"], runs, axis, is_smooth=True)]
    names = list(dict.fromkeys(name for run in runs for name in run.validation_names))
    kinds = dict.fromkeys(name.partition("/")[0] if len(runs) == 1 else name for name in names)
    for kind in kinds:
        group = [f"{VALIDATION}{name}" for name in names if kind in (name, name.partition("/")[0])]
        note = "higher is better" if is_larger_better(kind) else "lower is better"
        found.append(_panel(f"validation: {_words(kind)}", group, runs, axis, note=note))
    found.append(_panel("learning rate", ["learning_rate"], runs, axis))
    return [panel for panel in found if panel.curves]


def _panel(
    title: str,
    names: list[str],
    runs: Sequence[Run],
    axis: tuple[str, float, float, str],
    *,
    is_smooth: bool = False,
    note: str = "",
) -> Panel:
    place, end, unit, x = axis
    curves = []
    for number, run in enumerate(runs):
        for position, name in enumerate(names):
            points = [(at / unit, value) for at, value in run.points(name, place)]
            if not points:
                continue
            label = run.name if len(runs) > 1 else name.removeprefix(VALIDATION).partition("/")[2]
            places, values = zip(*points, strict=True)
            colour = number if len(runs) > 1 else position
            if is_smooth and len(points) > FEW:
                line = list(zip(places, smoothed(list(values)), strict=True))
                curves.append(Curve(label, line, colour, tuple(points)))
            else:
                curves.append(Curve(label, points, colour))
    drawn = [value for curve in curves for _, value in curve.points]
    is_log = bool(drawn) and title != "learning rate" and min(drawn) > 0 and max(drawn) > LOG_FROM * min(drawn)
    return Panel(title, x, end / unit, tuple(curves), is_log, note)


def _shown_time(longest: float) -> tuple[float, str]:
    """The unit, in seconds and by name, in which the longest run is a number to read."""
    if longest >= 2 * 3600:
        return 3600.0, "hours"
    return (60.0, "minutes") if longest >= 120 else (1.0, "seconds")


def _words(name: str) -> str:
    return name.replace("_", " ").replace("/", ", ")
