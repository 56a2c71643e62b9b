"""Grids: one prompt under every pair of two settings' values, side by side in one labelled picture."""

import math
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from diptych.core.spelling import unknown
from diptych.image.film import BACKGROUND, FAINT, FONT, GAP, INK, MARGIN, shown, shown_size, wrapped
from diptych.image.model import ImageModel

# What is no single value, or would make several pictures of one.
LEFT_OUT = ("noise", "picture", "mask", "weaker", "turns", "count", "first_sample", "return")
LINE = FONT + 5  # pixels from line to line
MOST_CELLS = 100


@dataclass(frozen=True)
class Axis:
    """A setting of `ImageModel.generate` and the values that it takes along a side of a grid."""

    name: str
    values: tuple[Any, ...]

    @classmethod
    def again(cls, name: str, values: Any) -> "Axis":
        """As metadata has it. Raises: ValueError for a setting that there is not, or no list of values."""
        kind = kind_of(name)
        if not isinstance(values, list) or not values:
            raise ValueError(f"the grid's {name} has no values")
        return cls(name, tuple(tuple(value) if kind is tuple else value for value in values))

    @property
    def labels(self) -> list[str]:
        return [f"{self.name} {_said(value)}" for value in self.values]


def axis(words: str) -> Axis:
    """Of "steps=10,20,40". Values of words may hold commas where "|" stands between them: "prompt=a cat|a dog, asleep".
    An interval is LOW:HIGH.

    Raises:
        ValueError: a setting that there is not, or a value of another type than it takes.
    """
    name, equals, listed = words.partition("=")
    name = name.strip()
    if not equals or not listed.strip():
        raise ValueError(f"a grid needs a setting and its values, like steps=10,20,40, not '{words}'")
    kind = kind_of(name)
    parts = listed.split("|" if "|" in listed else ",")
    values = tuple(value_of(name, part.strip(), kind) for part in parts)
    if len(set(values)) < len(values):
        raise ValueError(f"the grid's {name} has a value twice: {listed}")
    return Axis(name, values)


def checked(axes: Sequence[Axis]) -> None:
    """Raises: ValueError for axes that make no grid."""
    if len(axes) > 2:
        raise ValueError(f"a grid has two sides; {len(axes)} settings were given")
    if len(axes) == 2 and axes[0].name == axes[1].name:
        raise ValueError(f"both sides of the grid are {axes[0].name}; join their values, or take another setting")
    cells = math.prod(len(one.values) for one in axes)
    if cells > MOST_CELLS:
        raise ValueError(f"a grid of {cells} pictures is too large; at most {MOST_CELLS}")


def kind_of(name: str) -> Any:
    """int, float, str or tuple: what a setting of `generate` takes."""
    hints = typing.get_type_hints(ImageModel.generate)
    known = [hint for hint in hints if hint not in LEFT_OUT]
    if name not in known:
        raise unknown("setting of a grid", name, known)
    options = typing.get_args(hints[name]) if isinstance(hints[name], types.UnionType) else (hints[name],)
    first = next(option for option in options if option is not type(None))
    return typing.get_origin(first) or first


def value_of(name: str, word: str, kind: Any) -> Any:
    """Raises: ValueError for a word that is no such value."""
    try:
        if kind is tuple:
            low, _, high = word.partition(":")
            return float(low), float(high) if high.strip() not in ("", "inf") else None
        return kind(word)
    except ValueError:
        said = {int: "a whole number", float: "a number", tuple: "an interval LOW:HIGH"}[kind]
        raise ValueError(f"{name} must be {said}, not '{word}'") from None


def sheet(
    cells: Sequence[Sequence[Image.Image]], columns: Sequence[str], rows: Sequence[str], title: str
) -> Image.Image:
    """One picture of all, its columns labelled above and its rows at their left.

    Args:
        cells: rows of pictures, which may differ in size.
        rows: their labels; empty where there is one row and nothing to say of it.
    """
    font = ImageFont.load_default(size=FONT)
    sizes = [shown_size(picture) for row in cells for picture in row]
    width, height = max(size[0] for size in sizes), max(size[1] for size in sizes)
    heads = [wrapped(label, font, width) for label in columns]
    sides = [wrapped(label, font, width) for label in rows]
    margin = round(max((font.getlength(line) for lines in sides for line in lines), default=-GAP)) + GAP
    across = MARGIN + margin + len(columns) * (width + GAP) - GAP + MARGIN
    said = wrapped(title, font, across - 2 * MARGIN)
    top = MARGIN + len(said) * LINE + GAP
    head = max(map(len, heads)) * LINE
    down = top + head + len(cells) * (max(height, LINE * max(map(len, sides), default=0)) + GAP) - GAP + MARGIN
    whole = Image.new("RGB", (across, down), BACKGROUND)
    drawing = ImageDraw.Draw(whole)
    for number, line in enumerate(said):
        drawing.text((MARGIN, MARGIN + number * LINE), line, fill=FAINT, font=font)
    for place, lines in enumerate(heads):
        middle = MARGIN + margin + place * (width + GAP) + width / 2
        for number, line in enumerate(lines):
            drawing.text((middle, top + number * LINE), line, fill=INK, font=font, anchor="ma")
    row_height = (down - MARGIN + GAP - top - head) // len(cells)
    for number, row in enumerate(cells):
        y = top + head + number * row_height
        for place, line in enumerate(sides[number] if sides else ()):
            drawing.text((MARGIN, y + place * LINE), line, fill=INK, font=font)
        for place, picture in enumerate(row):
            size = shown_size(picture)
            x = MARGIN + margin + place * (width + GAP) + (width - size[0]) // 2
            whole.paste(shown(picture, size), (x, y + (height - size[1]) // 2))
    return whole


def _said(value: Any) -> str:
    if isinstance(value, tuple):
        return ":".join("" if end is None else f"{end:g}" for end in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
