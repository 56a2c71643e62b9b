"""Tables: ruled and coloured on a terminal, plain columns in a pipe. The first row is the heading."""

import sys

from diptych.cli import frame

BETWEEN = 3  # blanks between two columns of a ruled table
COLOURS = {"finished": "green", "running?": "cyan", "damaged": "red"}  # of cells that say a run's state
RIGHT = ("step", "time", "size")  # headings of columns of numbers with units, which end alike


def show(rows: list[list[str]]) -> None:
    """Whichever of the two fits standard output."""
    ruled(rows) if frame.is_terminal(sys.stdout) else plain(rows)


def plain(rows: list[list[str]]) -> None:
    """Columns under each other, two blanks between."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def ruled(rows: list[list[str]]) -> None:
    """A line below the heading; cells that do not fit go on below themselves."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, BETWEEN - 1, 0, 0), show_edge=False, header_style="bold"
    )
    for name in rows[0]:
        table.add_column(Text(name), justify="right" if name in RIGHT else "left", overflow="fold")
    for row in rows[1:]:
        table.add_row(*(Text(cell, style=COLOURS.get(cell, "")) for cell in row))
    Console().print(table)


def width(rows: list[list[str]]) -> int:
    """Columns of the terminal that a ruled table takes where nothing has to be folded."""
    return sum(max(map(len, column)) + BETWEEN for column in zip(*rows, strict=True)) - BETWEEN
