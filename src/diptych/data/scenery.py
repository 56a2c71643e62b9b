"""Backgrounds drawn in code: a sky for each time of day and eight places, different for every seed.

A place is drawn once, in daylight colours, around a free middle: the figure comes there. The canvas sees to time and
style. Each place keeps one or two signs that no other has (palms and sand with sea behind; cactus; lit windows).
"""

from collections.abc import Callable
from math import cos, pi, sin

import numpy as np

from diptych.data.canvas import FLAT_SKY, SCALE, SIDE, Canvas, Colour, Point, mix, shaded_ball


def hills(rng: np.random.Generator, base: float, height: float, waves: float) -> list[Point]:
    """A rolling line across the picture around y = `base`, closed along the lower edge."""
    phase, second = rng.uniform(0, 2 * pi, 2)
    xs = np.arange(-4, 137, 4)
    angle = xs / SIDE * 2 * pi * waves
    ys = base - height * (0.7 * np.sin(angle + phase) + 0.3 * np.sin(1.9 * angle + second))
    return [*((float(x), float(y)) for x, y in zip(xs, ys, strict=True)), (136, 136), (-4, 136)]


def sky(canvas: Canvas, rng: np.random.Generator, horizon: float) -> None:
    """Sun and clouds, a low sun, or moon and stars."""
    side = float(rng.choice([-1, 1]))
    if canvas.time == "night":
        for _ in range(26):
            x, y, radius = rng.uniform(2, 126), rng.uniform(2, horizon - 8), rng.uniform(0.5, 1.15)
            canvas.disc(x, y, radius, (255, 250, 215))
        x, y, radius = 64 + side * rng.uniform(30, 46), rng.uniform(14, 22), rng.uniform(8.5, 10.5)
        canvas.haze(x, y, 24, 24, (200, 205, 255), 120)
        canvas.disc(x, y, radius, (252, 244, 200))
        if canvas.is_soft:
            canvas.disc(x - 3, y - 2, 2.2, (228, 216, 176))
            canvas.disc(x + 3.5, y + 3, 1.7, (228, 216, 176))
            canvas.disc(x + 2.5, y - 4.5, 1.3, (228, 216, 176))
        else:
            canvas.disc(x + radius * 0.5, y - radius * 0.25, radius * 0.82, FLAT_SKY["night"][0])
        return
    if canvas.time == "sunset":
        x, y, radius = 64 + side * rng.uniform(34, 48), horizon - rng.uniform(3, 9), rng.uniform(13, 16)
        canvas.haze(x, y, 52, 44, (255, 236, 150), 230)
        canvas.disc(x, y, radius, (255, 240, 150))
    else:
        x, y, radius = 64 + side * rng.uniform(32, 48), rng.uniform(14, 22), rng.uniform(9, 11.5)
        canvas.haze(x, y, 30, 30, (255, 248, 190), 230)
        if not canvas.is_soft:
            turn = rng.uniform(0, 1)
            for ray in range(10):
                angle = (ray + turn) * pi / 5
                tip = (x + cos(angle) * radius * 1.6, y + sin(angle) * radius * 1.6)
                foot = [(x + cos(angle + d) * radius, y + sin(angle + d) * radius) for d in (-0.22, 0.22)]
                canvas.draw.polygon([(px * SCALE, py * SCALE) for px, py in (tip, *foot)], fill=(255, 206, 64))
        canvas.disc(x, y, radius, (255, 222, 76))
    white: Colour = (255, 255, 255) if canvas.time == "day" else (255, 190, 180)
    for _ in range(int(rng.integers(1, 3))):
        x, y, wide = 64 - side * rng.uniform(18, 50), rng.uniform(9, 32), rng.uniform(5, 7.5)
        for dx, dy, part in ((-1.1, 0.35, 0.7), (1.15, 0.3, 0.75), (0, 0, 1.0)):
            if canvas.is_soft:
                piece = shaded_ball(round(4 * wide * part), round(2.9 * wide * part), white)
                corner = (
                    round((x + dx * wide - wide * part) * SCALE),
                    round((y + dy * wide - 0.72 * wide * part) * SCALE),
                )
                canvas.image.paste(piece, corner, piece)
            else:
                canvas.disc(x + dx * wide, y + dy * wide, wide * part * 0.85, white)


# ---- the places ------------------------------------------------------------------------------------------------


def beach(canvas: Canvas, rng: np.random.Generator) -> None:
    canvas.area([(-4, 64), (132, 64), (132, 90), (-4, 90)], (38, 150, 214))
    for _ in range(7):
        x, y, wide = rng.uniform(0, 128), rng.uniform(68, 80), rng.uniform(6, 14)
        canvas.line([(x - wide, y), (x + wide, y)], 1.0, (170, 224, 244))
    shore = hills(rng, 84, 1.8, 1.6)
    canvas.area([(x, y - 2.6) for x, y in shore], (240, 250, 255), depth=0)
    canvas.area(shore, (247, 214, 142), depth=0.25)
    for _ in range(12):
        canvas.disc(rng.uniform(2, 126), rng.uniform(94, 126), 0.8, canvas.lit((214, 172, 100)))
    _palm(canvas, rng, rng.uniform(9, 17), rng.uniform(94, 102), rng.uniform(60, 70))
    if rng.random() < 0.75:
        _umbrella(canvas, rng.uniform(108, 116), rng.uniform(92, 98), rng)
    else:
        _palm(canvas, rng, rng.uniform(112, 120), rng.uniform(90, 96), rng.uniform(44, 54), lean=-1)
    if rng.random() < 0.6:
        x, y = rng.uniform(104, 120), rng.uniform(112, 120)
        arms = [(x + cos(k * pi / 5 - 0.4) * r, y + sin(k * pi / 5 - 0.4) * r) for k, r in enumerate([5.5, 2.4] * 5)]
        canvas.area(arms, (240, 108, 76))


def _palm(canvas: Canvas, rng: np.random.Generator, x: float, foot: float, height: float, lean: int = 1) -> None:
    bend = lean * rng.uniform(5, 10)
    curve = [(x + bend * t * t, foot - height * t) for t in np.linspace(0, 1, 9)]
    left = [(px - 3.0 + 1.3 * k / 8, py) for k, (px, py) in enumerate(curve)]
    right = [(px + 3.0 - 1.3 * k / 8, py) for k, (px, py) in enumerate(curve)]
    canvas.area([*left, *reversed(right)], (156, 104, 58))
    for px, py in curve[1:-1]:
        canvas.line([(px - 2.4, py), (px + 2.4, py + 0.8)], 0.8, (116, 74, 42))
    top_x, top_y = curve[-1]
    for k, angle in enumerate(np.linspace(-0.25, pi + 0.25, 7) + rng.uniform(-0.1, 0.1)):
        length, spine = rng.uniform(17, 21), []
        for t in np.linspace(0, 1, 6):
            spine.append((top_x + cos(angle) * length * t, top_y - sin(angle) * length * 0.62 * t + 11 * t * t))
        upper = [(px, py - 3.2 * sin(pi * t)) for (px, py), t in zip(spine, np.linspace(0, 1, 6), strict=True)]
        lower = [(px, py + 2.6 * sin(pi * t)) for (px, py), t in zip(spine, np.linspace(0, 1, 6), strict=True)]
        canvas.area([*upper, *reversed(lower)], ((52, 168, 76), (38, 140, 66))[k % 2])
    canvas.ball(top_x - 2, top_y + 2.5, 2.3, (122, 78, 44))
    canvas.ball(top_x + 2.4, top_y + 2.8, 2.3, (122, 78, 44))


def _umbrella(canvas: Canvas, x: float, foot: float, rng: np.random.Generator) -> None:
    top, radius = foot - rng.uniform(42, 48), rng.uniform(15, 17)
    canvas.line([(x, foot), (x, top)], 1.6, (236, 236, 236))
    colours: list[Colour] = [(236, 70, 74), (250, 246, 236)]
    for k in range(5):
        angles = np.linspace(pi - k * pi / 5, pi - (k + 1) * pi / 5, 5)
        rim = [(x + cos(a) * radius, top + 13 - sin(a) * 14) for a in angles]
        canvas.area([(x, top - 1), *rim], colours[k % 2])


def forest(canvas: Canvas, rng: np.random.Generator) -> None:
    for x in np.arange(-2, 134, 11.0):
        canvas.ball(x + rng.uniform(-3, 3), 60 + rng.uniform(-3, 3), rng.uniform(9, 11), (26, 96, 66))
    canvas.area([(-4, 62), (132, 62), (132, 90), (-4, 90)], (22, 82, 56))
    canvas.area(hills(rng, 87, 2, 1.2), (66, 128, 56))
    for x in (24, 104, 42, 86):
        _tree(canvas, rng, x + rng.uniform(-5, 5), rng.uniform(84, 90), rng.uniform(42, 50), rng.uniform(9, 11))
    for x in (6, 122):
        _tree(canvas, rng, x + rng.uniform(-4, 4), rng.uniform(98, 108), rng.uniform(60, 70), rng.uniform(14, 17))
    for _ in range(3):
        x, y = float(rng.choice([rng.uniform(6, 30), rng.uniform(98, 122)])), rng.uniform(110, 121)
        canvas.area([(x - 1.6, y), (x + 1.6, y), (x + 2, y + 5), (x - 2, y + 5)], (244, 232, 214))
        canvas.ball(x, y - 0.6, 4.2, (222, 62, 56), squash=0.72)
        canvas.disc(x - 1.4, y - 1.4, 0.8, canvas.lit((255, 255, 255)))
        canvas.disc(x + 1.6, y - 0.6, 0.7, canvas.lit((255, 255, 255)))


def _tree(canvas: Canvas, rng: np.random.Generator, x: float, foot: float, height: float, radius: float) -> None:
    wide = radius * 0.22
    canvas.area(
        [
            (x - wide, foot - height * 0.6),
            (x + wide, foot - height * 0.6),
            (x + wide * 1.5, foot),
            (x - wide * 1.5, foot),
        ],
        (110, 72, 46),
    )
    greens: list[Colour] = [(44, 134, 66), (54, 150, 70), (36, 120, 66)]
    colour = greens[int(rng.integers(3))]
    crown = foot - height + radius
    canvas.ball(x - radius * 0.6, crown + radius * 0.75, radius * 0.8, mix(colour, (0, 30, 40), 0.15))
    canvas.ball(x + radius * 0.6, crown + radius * 0.7, radius * 0.8, mix(colour, (0, 30, 40), 0.1))
    canvas.ball(x, crown, radius, colour)


def desert(canvas: Canvas, rng: np.random.Generator) -> None:
    canvas.area(hills(rng, 64, 7, 0.9), (232, 168, 92))
    canvas.area(hills(rng, 78, 5, 1.2), (240, 184, 104))
    front = hills(rng, 94, 4, 0.8)
    canvas.area(front, (248, 202, 122))
    for shift in (7, 13, 20):
        canvas.line([(x, y + shift) for x, y in front[:-2]], 0.9, (222, 164, 88))
    _cactus(canvas, rng.uniform(10, 19), rng.uniform(94, 102), rng.uniform(44, 52))
    _cactus(canvas, rng.uniform(108, 118), rng.uniform(86, 96), rng.uniform(28, 44))
    if rng.random() < 0.5:
        canvas.ball(rng.uniform(96, 122), 114, rng.uniform(4, 6), (176, 118, 76), squash=0.6)


def _cactus(canvas: Canvas, x: float, foot: float, height: float) -> None:
    green: Colour = (46, 148, 84)
    wide = height * 0.10
    for side, start, reach, up in ((-1, 0.42, 0.26, 0.30), (1, 0.55, 0.24, 0.28)):
        y, arm = foot - height * start, x + side * height * reach
        thick = wide * 0.72
        canvas.area([(x, y - thick), (arm, y - thick), (arm, y + thick), (x, y + thick)], green)
        _pillar(canvas, arm, y + thick, height * up, thick, green)
    _pillar(canvas, x, foot, height, wide, green)
    for dx in (-0.4, 0.4):
        canvas.line([(x + dx * wide, foot - 1), (x + dx * wide, foot - height + wide)], 0.7, (30, 112, 66))


def _pillar(canvas: Canvas, x: float, foot: float, height: float, wide: float, colour: Colour) -> None:
    """An upright with a round top."""
    arc = [(x - cos(a) * wide, foot - height + wide - sin(a) * wide) for a in np.linspace(0, pi, 9)]
    canvas.area([(x - wide, foot), *arc, (x + wide, foot)], colour)


def city(canvas: Canvas, rng: np.random.Generator) -> None:
    shift = rng.uniform(0, 10)
    for k in range(9):
        x, height = k * 16 - 8 - shift, rng.uniform(26, 52)
        canvas.area([(x, 92), (x, 92 - height), (x + 17, 92 - height), (x + 17, 92)], (148, 166, 196))
    walls: list[Colour] = [
        (196, 92, 80),
        (92, 116, 168),
        (226, 168, 104),
        (116, 98, 144),
        (84, 150, 156),
        (206, 124, 118),
    ]
    x = -rng.uniform(2, 10)
    while x < 128:
        wide = rng.uniform(17, 24)
        centre = abs(x + wide / 2 - 64)
        height = rng.uniform(26, 36) if centre < 22 else rng.uniform(42, 66)
        _house(canvas, rng, x, 94 - height, wide - 1, height, walls[int(rng.integers(len(walls)))])
        x += wide
    canvas.area([(-4, 93), (132, 93), (132, 99), (-4, 99)], (186, 184, 188), depth=0.1)
    canvas.area([(-4, 99), (132, 99), (132, 134), (-4, 134)], (92, 94, 108), depth=0.2)
    for x in np.arange(rng.uniform(-20, 0), 128, 22):
        canvas.area([(x, 115), (x + 12, 115), (x + 12, 118), (x, 118)], (246, 236, 196), depth=0)


def _house(
    canvas: Canvas, rng: np.random.Generator, x: float, top: float, wide: float, height: float, wall: Colour
) -> None:
    canvas.area([(x, top + height), (x, top), (x + wide, top), (x + wide, top + height)], wall)
    if rng.random() < 0.35:
        canvas.line([(x + wide / 2, top), (x + wide / 2, top - 7)], 1.2, (90, 94, 110))
    columns = 3 if wide < 20 else 4
    pane = wide / (columns * 1.7 + 0.7)
    for row in range(int((height - 4) // 8)):
        for column in range(columns):
            left, upper = x + pane * (0.7 + 1.7 * column), top + 4 + row * 8
            is_lit = canvas.time != "day" and rng.random() < (0.75 if canvas.time == "night" else 0.5)
            colour = (
                (255, 222, 110) if is_lit else canvas.lit((206, 232, 246) if canvas.time == "day" else (92, 96, 130))
            )
            box = (left * SCALE, upper * SCALE, (left + pane) * SCALE, (upper + 4.4) * SCALE)
            canvas.draw.rectangle(box, fill=colour)


def snow(canvas: Canvas, rng: np.random.Generator) -> None:
    canvas.area(hills(rng, 68, 4, 1.0), (206, 222, 242), depth=0.12)
    for x in (30, 98, 46, 84):
        _fir(canvas, x + rng.uniform(-6, 6), rng.uniform(76, 82), rng.uniform(24, 32))
    canvas.area(hills(rng, 84, 3, 0.8), (244, 249, 255), depth=0.16)
    _fir(canvas, rng.uniform(8, 16), rng.uniform(98, 106), rng.uniform(54, 64))
    if rng.random() < 0.6:
        _snowman(canvas, rng.uniform(109, 117), rng.uniform(100, 106))
    else:
        _fir(canvas, rng.uniform(110, 120), rng.uniform(96, 104), rng.uniform(46, 58))
    flake: Colour = (255, 255, 255) if canvas.time == "day" else (236, 236, 252)
    for _ in range(34):
        canvas.disc(rng.uniform(0, 128), rng.uniform(0, 128), rng.uniform(0.9, 1.7), flake)


def _fir(canvas: Canvas, x: float, foot: float, height: float) -> None:
    canvas.area(
        [
            (x - height * 0.05, foot),
            (x - height * 0.05, foot - 8),
            (x + height * 0.05, foot - 8),
            (x + height * 0.05, foot),
        ],
        (104, 72, 52),
    )
    for k in (0, 1, 2):
        low, high, wide = foot - 3 - height * 0.25 * k, foot - height * (0.50 + 0.25 * k), height * (0.30 - 0.065 * k)
        if k == 2:
            high = foot - height
        canvas.area([(x, high), (x + wide, low), (x - wide, low)], (34, 112, 84))
        part = 0.48
        edge = [
            (x + wide * part * s, high + (low - high) * (part + d))
            for s, d in ((1, 0), (0.5, -0.10), (0, 0.08), (-0.5, -0.10), (-1, 0))
        ]
        canvas.area([(x, high), *edge], (248, 252, 255), depth=0.08)


def _snowman(canvas: Canvas, x: float, foot: float) -> None:
    white: Colour = (236, 243, 252) if canvas.is_soft else (206, 222, 244)
    canvas.ball(x, foot - 8, 9.5, white)
    canvas.ball(x, foot - 22, 7, white)
    for dx in (-2.4, 2.4):
        canvas.disc(x + dx, foot - 23.5, 0.9, (40, 40, 60))
    canvas.area([(x, foot - 22), (x, foot - 20), (x - 6, foot - 20.6)], (244, 136, 52))
    canvas.disc(x, foot - 10, 1, (40, 40, 60))
    canvas.disc(x, foot - 6, 1, (40, 40, 60))


def sea(canvas: Canvas, rng: np.random.Generator) -> None:
    canvas.area([(-4, 64), (132, 64), (132, 132), (-4, 132)], (30, 128, 206))
    if rng.random() < 0.6:
        x, size = rng.choice([rng.uniform(10, 24), rng.uniform(104, 118)]), rng.uniform(7, 10)
        canvas.area([(x, 64 - size * 2), (x + size, 65 - size * 0.4), (x, 65 - size * 0.4)], (255, 250, 240))
        canvas.area(
            [(x - 1, 64 - size * 1.6), (x - 1, 65 - size * 0.4), (x - size * 0.7, 65 - size * 0.4)], (244, 108, 88)
        )
        canvas.area([(x - size, 65), (x + size, 65), (x + size * 0.6, 68), (x - size * 0.6, 68)], (150, 84, 54))
    for row, colour in ((73, (44, 150, 222)), (84, (34, 134, 212)), (96, (26, 116, 196))):
        _waves(canvas, rng, row, colour)
    if canvas.time != "night":
        for _ in range(2):
            x, y = rng.uniform(20, 108), rng.uniform(26, 46)
            canvas.line(
                [(x - 5, y - 2.4), (x - 2, y - 3), (x, y), (x + 2, y - 3), (x + 5, y - 2.4)], 1.1, (250, 250, 255)
            )


def _waves(canvas: Canvas, rng: np.random.Generator, y: float, colour: Colour) -> None:
    """A row of pointed wave crests with foam."""
    length, shift = rng.uniform(15, 19), rng.uniform(0, 18)
    xs = np.arange(-20, 150, 1.6)
    crest = [(float(x), y - 4.2 * abs(cos((x + shift) / length * pi)) ** 1.6 + 2) for x in xs]
    canvas.area([(px, py - 1.3) for px, py in crest] + [(150, 134), (-20, 134)], (214, 240, 252), depth=0)
    canvas.area([*crest, (150, 134), (-20, 134)], colour)


def meadow(canvas: Canvas, rng: np.random.Generator) -> None:
    canvas.area(hills(rng, 66, 5, 0.9), (134, 200, 96))
    canvas.area(hills(rng, 78, 4, 1.1), (110, 190, 78))
    canvas.area(hills(rng, 92, 3, 0.8), (88, 176, 64))
    petals: list[Colour] = [(255, 92, 122), (255, 246, 250), (190, 112, 232), (255, 158, 60), (255, 120, 196)]
    spots = [(rng.uniform(2, 126), rng.uniform(74, 88), rng.uniform(1.0, 1.4)) for _ in range(14)]
    spots += [
        (float(x) + rng.uniform(-3, 3), rng.uniform(94, 122), rng.uniform(2.0, 2.7))
        for x in (6, 16, 27, 38, 90, 101, 112, 122, 9, 118)
    ]
    for x, y, size in sorted(spots, key=lambda spot: spot[1]):
        colour, turn = petals[int(rng.integers(len(petals)))], rng.uniform(0, 1)
        canvas.line([(x, y), (x, y + 4 * size)], 0.5 * size, (48, 128, 48))
        tone = canvas.lit(colour, 0.8)
        for k in range(5):
            angle = (k + turn) * 2 * pi / 5
            canvas.disc(x + cos(angle) * 1.45 * size, y + sin(angle) * 1.45 * size, 1.15 * size, tone)
        canvas.disc(x, y, size, canvas.lit((255, 214, 70), 0.8))


def mountains(canvas: Canvas, rng: np.random.Generator) -> None:
    for x in (-4, 46, 92, 136):
        _peak(canvas, rng, x + rng.uniform(-6, 6), rng.uniform(40, 46), rng.uniform(30, 36), (150, 164, 196))
    for x, top in ((20, 22), (108, 18), (64, 34)):
        _peak(canvas, rng, x + rng.uniform(-5, 5), top + rng.uniform(-3, 5), rng.uniform(34, 40), (104, 112, 138))
    canvas.area(hills(rng, 88, 3, 1.0), (92, 124, 92))
    canvas.area(hills(rng, 101, 2, 0.8), (118, 140, 100))
    for _ in range(4):
        x = rng.choice([rng.uniform(2, 26), rng.uniform(102, 126)])
        canvas.ball(x, rng.uniform(104, 120), rng.uniform(4, 7), (140, 138, 146), squash=0.72)


def _peak(canvas: Canvas, rng: np.random.Generator, x: float, top: float, wide: float, rock: Colour) -> None:
    foot, lean = 96.0, rng.uniform(-4, 4)
    canvas.area([(x, top), (x + wide, foot), (x - wide, foot)], rock)
    canvas.area([(x, top), (x + wide, foot), (x + lean, foot)], mix(rock, (30, 24, 70), 0.28))
    cap = 0.36
    edge = [
        (x + wide * cap * s, top + (foot - top) * (cap * abs(s) + d))
        for s, d in ((1, 0), (0.55, 0.04), (0.3, 0.17), (0, 0.24), (-0.35, 0.11), (-0.6, 0.10), (-1, 0))
    ]
    canvas.area([(x, top), *edge], (250, 252, 255), depth=0.08)
    canvas.area([(x, top), *edge[:4]], (214, 224, 242), depth=0.08)


PLACES: dict[str, Callable[[Canvas, np.random.Generator], None]] = {
    "beach": beach,
    "forest": forest,
    "desert": desert,
    "city": city,
    "snow": snow,
    "sea": sea,
    "meadow": meadow,
    "mountains": mountains,
}
HORIZON: dict[str, int] = {
    "beach": 64,
    "forest": 62,
    "desert": 66,
    "city": 74,
    "snow": 66,
    "sea": 64,
    "meadow": 66,
    "mountains": 74,
}


def background(place: str, time: str, style: str, rng: np.random.Generator) -> Canvas:
    """A canvas with the sky and the place on it, ready for the figure."""
    canvas = Canvas(time, style, HORIZON[place])
    sky(
        canvas,
        rng,
        HORIZON[place] - (12 if canvas.time == "sunset" and place in ("forest", "mountains", "city") else 0),
    )
    PLACES[place](canvas, rng)
    return canvas
