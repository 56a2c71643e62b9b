"""Curves in braille: dots against the picture that they must make."""

import pytest

from diptych.cli.plot import DOTS, Canvas, draw, number
from diptych.train.curves import Curve, Panel


def dots(lines: list[str]) -> list[str]:
    """Braille as a picture of "#" and "."."""
    rows = []
    for line in lines:
        masks = [ord(cell) - 0x2800 if cell != " " else 0 for cell in line]
        rows += ["".join("#" if mask & bit else "." for mask in masks for bit in DOTS[row]) for row in range(4)]
    return rows


def area(panel: Panel, columns: int, rows: int) -> list[str]:
    """The part between the axes."""
    lines = draw(panel, columns, rows)[1 : rows + 1]
    width = max(len(line) for line in lines)
    return [line.ljust(width)[8:] for line in lines]


def test_a_straight_line_is_a_diagonal() -> None:
    panel = Panel("x", "steps", 1.0, (Curve("", [(0.0, 0.0), (1.0, 1.0)], 0),))
    drawn = dots(area(panel, 8 + 12, 6))
    assert len(drawn) == len(drawn[0]) == 24
    assert all(drawn[23 - place][place] == "#" for place in range(24))
    assert sum(row.count("#") for row in drawn) == 24


def test_a_power_law_is_straight_on_a_logarithmic_scale() -> None:
    curve = Curve("", [(place / 23, 10 ** (-place / 4)) for place in range(24)], 0)
    drawn = dots(area(Panel("x", "steps", 1.0, (curve,), is_log=True), 8 + 12, 6))
    assert all(drawn[place][place] == "#" for place in range(24))


def test_every_drawing_fits_its_columns_and_names_its_curves() -> None:
    curves = tuple(Curve(f"a long name of run {run}", [(0.0, 1.0), (900.0, float(run))], run) for run in range(5))
    for columns in (40, 60, 80, 110):
        lines = draw(Panel("loss", "steps", 1000.0, curves), columns, 8)
        assert max(map(len, lines)) <= columns
        assert len(lines) == 8 + 3
        assert all(any(f"a long name of run {run}" in line for line in lines) for run in range(5))
        assert lines[-1].split()[0] == "0"
        assert lines[-1].split()[-1] == "steps"


def test_without_colours_curves_differ_by_their_dashes_and_with_them_by_colour() -> None:
    def flat(run: int) -> Panel:
        return Panel("x", "steps", 1.0, tuple(Curve("", [(0.0, 1.0 + k), (1.0, 1.0 + k)], k) for k in range(run + 1)))

    for run, share in ((0, 1.0), (1, 5 / 8), (2, 2 / 5)):
        highest = next(row for row in dots(area(flat(run), 88, 4)) if "#" in row)
        assert highest.count("#") / 160 == pytest.approx(share, abs=0.03)
    assert not any("\x1b" in line for line in draw(flat(1)))
    coloured = draw(flat(1), has_colour=True)
    assert "\x1b[36m" in "".join(coloured)
    assert "\x1b[33m" in "".join(coloured)


def test_one_point_can_be_seen_and_one_value_has_room() -> None:
    lines = dots(area(Panel("x", "steps", 10.0, (Curve("", [(5.0, 3.0)], 0),)), 60, 6))
    assert sum(row.count("#") for row in lines) == 5
    draw(Panel("x", "steps", 0.0, (Curve("", [(0.0, 0.0)], 0),)))
    draw(Panel("x", "steps", 1.0, (Curve("", [(0.0, -2.0), (1.0, -2.0)], 0),)))


def test_a_million_points_are_drawn_as_their_extremes() -> None:
    """A spike of one point among them is as high as it is alone."""
    points = [(float(place), 9.0 if place == 50_000 else 1.0) for place in range(100_000)]
    many = area(Panel("x", "steps", 1e5, (Curve("", points, 0),)), 48, 6)
    assert dots(many)[0].count("#") == 1


@pytest.mark.parametrize(
    ("value", "words"),
    [(0, "0"), (0.25, "0.25"), (1234, "1234"), (12_500, "12.5 k"), (3.2e6, "3.2 M"), (2e9, "2 G"), (0.0004, "4.0e-4")],
)
def test_numbers_are_short(value: float, words: str) -> None:
    assert number(value) == words


def test_a_dot_outside_is_not_drawn() -> None:
    canvas = Canvas(2, 1)
    for x, y in ((-1, 0), (4, 0), (0, 4), (0, -1)):
        canvas.dot(x, y, 0)
    assert canvas.masks == [[0, 0]]
