"""Watching a picture come: a bar on standard error and, where the terminal has the colours, the picture itself."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.style import Style
from rich.table import Table
from rich.text import Text

from diptych.cli import frame

if TYPE_CHECKING:
    from PIL import Image

    from diptych.image.record import ImageStep

COLUMNS, ROWS = 48, 24  # cells of the preview
PAUSE = 0.25  # seconds between previews at least: decoding one takes a while


def half_blocks(picture: "Image.Image", columns: int = COLUMNS, rows: int = ROWS) -> Text:
    """A picture in cells of two pixels: the upper one as the colour of "▀", the lower one as its background."""
    from PIL import Image

    scale = min(columns / picture.width, 2 * rows / picture.height)
    width = max(1, round(picture.width * scale))
    height = max(2, 2 * round(picture.height * scale / 2))
    pixels = picture.convert("RGB").resize((width, height), Image.Resampling.LANCZOS).tobytes()
    text = Text()
    for row in range(0, height, 2):
        text.append("\n" if row else "")
        for column in range(width):
            upper, lower = (3 * ((row + below) * width + column) for below in (0, 1))
            colours = ["#" + pixels[place : place + 3].hex() for place in (upper, lower)]
            text.append("▀", Style(color=colours[0], bgcolor=colours[1]))
    return text


@contextmanager
def watching(*, has_preview: bool, name: str = "") -> Iterator[Callable[["ImageStep"], None]]:
    """Give a function to be told each step; what it draws disappears at the end. In a pipe it draws nothing.

    Args:
        name: what is painted, where it is one of several.
    """
    if not frame.is_terminal(sys.stderr):
        yield lambda step: None
        return
    started = time.perf_counter()
    shown, last = Text(""), -PAUSE
    is_drawing = has_preview and frame.has_true_colour(sys.stderr)
    with Live(console=Console(stderr=True), transient=True, auto_refresh=False) as live:

        def watch(step: "ImageStep") -> None:
            nonlocal shown, last
            now = time.perf_counter() - started
            done = step.index + 1
            if is_drawing and (now - last >= PAUSE or done == step.total):
                shown, last = half_blocks(step.preview()), now
            left = now / done * (step.total - done)
            line = Table.grid(padding=(0, 1))
            line.add_row(
                f"{name}{', ' if name else ''}step {done}/{step.total}",
                ProgressBar(total=step.total, completed=done, width=24),
                f"sigma {step.sigma:.2f}",
                f"{left:.0f} s left",
            )
            live.update(Group(shown, line) if is_drawing else line, refresh=True)

        yield watch
