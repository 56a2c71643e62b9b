"""Curves in the terminal, in braille: each character is 2 x 4 dots, so a line of text is four lines of a drawing.

Every line of the drawing carries its name at its right end; without colours the second one is dashed, the third dotted.
"""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diptych.train.curves import Curve, Panel

DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # of U+2800, by row and column
COLOURS = (36, 33, 35, 32, 34, 31)  # cyan, yellow, magenta, green, blue, red: SGR codes
DASHES = ((1, 0), (5, 3), (2, 3), (9, 2))  # dots that are drawn, dots that are not
LONGEST = 22  # letters of a name


class Canvas:
    """Dots of a drawing of `columns` x `rows` characters; (0, 0) is at the left below."""

    def __init__(self, columns: int, rows: int) -> None:
        self.columns, self.rows = columns, rows
        self.width, self.height = 2 * columns, 4 * rows
        self.masks = [[0] * columns for _ in range(rows)]
        self.owners: list[list[int | None]] = [[None] * columns for _ in range(rows)]

    def dot(self, x: int, y: int, owner: int) -> None:
        if not (0 <= x < self.width and 0 <= y < self.height):
            return
        row, column = (self.height - 1 - y) // 4, x // 2
        self.masks[row][column] |= DOTS[(self.height - 1 - y) % 4][x % 2]
        self.owners[row][column] = owner

    def line(self, places: list[tuple[int, int]], owner: int, dash: tuple[int, int]) -> None:
        """Straight strokes from place to place; a dash goes on from one stroke into the next."""
        walked = 0
        for (x, y), (to_x, to_y) in pairwise(places):
            length = max(abs(to_x - x), abs(to_y - y), 1)
            for step in range(length):
                if walked % sum(dash) < dash[0]:
                    share = step / length
                    self.dot(round(x + share * (to_x - x)), round(y + share * (to_y - y)), owner)
                walked += 1
        x, y = places[-1]
        alone = ((1, 0), (-1, 0), (0, 1), (0, -1)) if len(places) == 1 else ()  # one dot is easily missed
        for right, up in ((0, 0), *alone):
            self.dot(x + right, y + up, owner)


def draw(panel: "Panel", columns: int = 80, rows: int = 12, *, has_colour: bool = False) -> list[str]:
    """The lines of a drawing that fits into `columns`: a title, the axes, the curves and their names."""
    low, high = _limits(panel)
    marks = _ticks(low, high, panel.is_log)
    labels = [number(mark) for mark in marks]
    gutter = max(6, *map(len, labels)) + 1  # alike for most panels, so that they stand under each other
    names = [curve.name[:LONGEST] for curve in panel.curves]
    margin = max(map(len, names)) + 1 if any(names) else 0
    canvas = Canvas(max(10, columns - gutter - 1 - margin), rows)

    def place(x: float, y: float) -> tuple[int, int]:
        across = x / panel.end if panel.end else 0.0
        return round(across * (canvas.width - 1)), round(_share(y, low, high, panel.is_log) * (canvas.height - 1))

    ends: list[tuple[int, int]] = []  # (line of text, number of the curve)
    for order, curve in enumerate(panel.curves):
        places = list(_thinned([place(x, y) for x, y in curve.points]))
        canvas.line(places, order, (1, 0) if has_colour else DASHES[order % len(DASHES)])
        ends.append(((canvas.height - 1 - places[-1][1]) // 4, order))
    beside = _beside(ends, rows) if any(names) else {}
    at = {(canvas.height - 1 - place(0.0, mark)[1]) // 4: label for mark, label in zip(marks, labels, strict=True)}
    note = ", ".join(filter(None, (panel.note, "logarithmic scale" if panel.is_log else "")))
    lines = [f"{panel.title}{f' ({note})' if note else ''}"]
    for row in range(rows):
        label = at.get(row, "")
        cells = _cells(canvas, row, panel.curves, has_colour)
        name = beside.get(row)
        said = "" if name is None else " " + _coloured(names[name], panel.curves[name].run, has_colour)
        lines.append(f"{label:>{gutter - 1}} {'┤' if label else '│'}{cells}{said}".rstrip())
    lines.append(f"{' ' * gutter}└{'─' * canvas.columns}")
    lines.append(" " * (gutter + 1) + _places(panel.end, panel.x, canvas.columns))
    return lines


def _limits(panel: "Panel") -> tuple[float, float]:
    values = sorted(value for curve in panel.curves for _, value in curve.points)
    low, high = values[0], values[-1]
    if low == high:
        return (low * 0.9, high * 1.1) if low > 0 else (low - 1, high + 1)
    return low, high


def _share(value: float, low: float, high: float, is_log: bool) -> float:
    if is_log:
        value, low, high = (math.log(one) for one in (value, low, high))
    return (value - low) / (high - low)


def _ticks(low: float, high: float, is_log: bool) -> list[float]:
    """Two to six round numbers within the limits: 1, 2 or 5 times a power of ten."""
    if is_log:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        fine = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
        inside = [mark for mark in fine if low <= mark <= high]
        if len(inside) > 6:
            inside = [10.0**power for power in powers if low <= 10.0**power <= high]
        return inside or [low, high]
    unit = 10.0 ** math.floor(math.log10((high - low) / 2))
    step = next(unit * digit for digit in (1, 2, 5, 10) if (high - low) / (unit * digit) <= 5)
    first = math.ceil(low / step - 1e-9)
    marks = [count * step for count in range(first, math.floor(high / step + 1e-9) + 1)]
    return [0.0 if abs(mark) < step / 2 else mark for mark in marks] or [low, high]


def number(value: float) -> str:
    """Four significant digits at most, large and tiny ones short."""
    size = abs(value)
    if size >= 1e15:
        return f"{value:.1e}"
    for limit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            return f"{value / (1e3 if letter == 'k' else limit):.4g} {letter}"
    return f"{value:.4g}" if size >= 1e-3 or not size else f"{value:.1e}".replace("e-0", "e-")


def _thinned(places: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Of many points in one column of dots, the first, lowest, highest and last: the drawing is the same."""
    start = 0
    while start < len(places):
        end = start
        while end < len(places) and places[end][0] == places[start][0]:
            end += 1
        column = places[start:end]
        yield from dict.fromkeys((column[0], min(column), max(column), column[-1]))
        start = end


def _beside(ends: list[tuple[int, int]], rows: int) -> dict[int, int]:
    """The line of text beside which each curve's name stands: that of its end, or the nearest that is free."""
    taken: dict[int, int] = {}
    for row, order in sorted(ends):
        free = [line for line in range(rows) if line not in taken]
        if free:
            taken[min(free, key=lambda line: (abs(line - row), line))] = order
    return taken


def _cells(canvas: Canvas, row: int, curves: "tuple[Curve, ...]", has_colour: bool) -> str:
    cells = []
    for mask, owner in zip(canvas.masks[row], canvas.owners[row], strict=True):
        letter = chr(0x2800 + mask) if mask else " "
        cells.append(letter if owner is None else _coloured(letter, curves[owner].run, has_colour))
    return "".join(cells)


def _coloured(words: str, colour: int, has_colour: bool) -> str:
    return f"\x1b[{COLOURS[colour % len(COLOURS)]}m{words}\x1b[0m" if has_colour else words


def _places(last: float, x: str, columns: int) -> str:
    """The line below the axis: round numbers, each under its place, and at the last one what they count."""
    line = "0"
    marks = [mark for mark in _ticks(0.0, last, is_log=False) if mark > 0] if last > 0 else []
    for mark in marks:
        words = number(mark) + (f" {x}" if mark == marks[-1] else "")
        at = min(round(mark / last * (columns - 1)) - len(number(mark)) // 2, columns - len(words))
        if at > len(line) + 1:
            line = line.ljust(at) + words
    return line if x in line else f"{line} {x}"
