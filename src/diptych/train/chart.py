"""Curves as a PNG, drawn by matplotlib, which comes with the extra `diptych[train]`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.core.files import atomic_file, output_path
from diptych.train.curves import FEW, Panel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BACKGROUND, INK, FAINT, GRID = "#faf9f6", "#202024", "#6e6e74", "#e4e2dc"
COLOURS = ("#1f6f8b", "#d9822b", "#8a4f9e", "#3b8f4f", "#c23b4a", "#7a6a4f")
WIDTH, HEIGHT = 5.6, 3.3  # inches of one panel
DOTS = 150  # an inch


def save_chart(panels: Sequence[Panel], title: str, path: str | Path) -> None:
    """Draw panels side by side, two in a row, the first alone if they are odd, and write them as a PNG.

    Raises:
        ValueError: matplotlib is not installed, or the folder of `path` does not exist.
    """
    path = output_path(path)
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("curves as PNG need the package matplotlib: pip install 'diptych[train]'") from error
    columns = 2 if len(panels) > 1 else 1
    rows = -(-len(panels) // columns)
    spare = columns * rows - len(panels)
    with rc_context({"font.family": ["DejaVu Sans"], "axes.unicode_minus": False, "svg.fonttype": "none"}):
        figure = Figure(figsize=(WIDTH * columns, HEIGHT * rows + 0.45), facecolor=BACKGROUND, layout="constrained")
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.08)  # type: ignore[union-attr, call-arg]
        figure.suptitle(title, x=0.012, ha="left", color=INK, fontsize=13, fontweight="bold")
        for place, panel in enumerate(panels):
            cell = place + 1 + (spare if place else 0)
            _draw(figure.add_subplot(rows, columns, cell if place else (1, 1 + spare)), panel)
        _legend(figure, panels)
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            figure.savefig(file, format="png", dpi=DOTS, facecolor=BACKGROUND)


def _draw(axes: "Axes", panel: Panel) -> None:
    axes.set_facecolor(BACKGROUND)
    axes.set_title(panel.title, loc="left", color=INK, fontsize=10.5)
    axes.set_title(panel.note, loc="right", color=FAINT, fontsize=8.5)
    for curve in panel.curves:
        colour = COLOURS[curve.run % len(COLOURS)]
        if curve.faint:
            axes.plot(*zip(*curve.faint, strict=True), color=colour, alpha=0.22, linewidth=0.7)
        marker = "o" if len(curve.points) < FEW and not curve.faint else ""
        axes.plot(
            *zip(*curve.points, strict=True),
            color=colour,
            linewidth=1.8,
            marker=marker,
            markersize=3.2,
            clip_on=not marker,
        )
    if panel.is_log:
        axes.set_yscale("log")
    _limit(axes, panel)
    axes.set_xlim(0, panel.end or 1)
    axes.set_xlabel(panel.x, color=FAINT, fontsize=8.5)
    axes.grid(True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=FAINT, labelsize=8.5, length=0, which="both")
    _plain_numbers(axes, panel)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(GRID)


def _limit(axes: "Axes", panel: Panel) -> None:
    """Room for the smoothed curves and for most of the single values: a few wild ones may leave the picture."""
    values = [value for curve in panel.curves for _, value in curve.points]
    for curve in panel.curves:
        single = sorted(value for _, value in curve.faint)
        if single:
            values += [single[len(single) // 100], single[-1 - len(single) // 100]]
    low, high = min(values), max(values)
    if panel.is_log:
        axes.set_ylim(low / 1.15, high * 1.15)
    elif low < high:
        room = 0.06 * (high - low)
        axes.set_ylim(0 if panel.title == "learning rate" else low - room, high + room)


def _plain_numbers(axes: "Axes", panel: Panel) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:,.10g}"))
    if panel.is_log:
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:.4g}"))


def _legend(figure: "Figure", panels: Sequence[Panel]) -> None:
    """The names of the runs once, at the top; names of one run's figures in their own panel."""
    from matplotlib.lines import Line2D

    names = {curve.run: curve.name for panel in panels[:1] for curve in panel.curves if curve.name}
    style: dict[str, Any] = {"frameon": False, "fontsize": 8.5, "labelcolor": INK}
    if names:
        found = dict(sorted({**{c.run: c.name for panel in panels for c in panel.curves}, **names}.items()))
        lines = [Line2D([], [], color=COLOURS[run % len(COLOURS)], linewidth=2.4) for run in found]
        figure.legend(lines, list(found.values()), loc="outside upper right", ncols=len(found), **style)
        return
    for panel, axes in zip(panels, figure.axes, strict=True):
        if any(curve.name for curve in panel.curves):
            lines = [Line2D([], [], color=COLOURS[curve.run % len(COLOURS)], linewidth=2.4) for curve in panel.curves]
            axes.legend(lines, [curve.name.replace("_", " ") for curve in panel.curves], **style)
