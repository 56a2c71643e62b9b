"""Figures: an animal's face and what it wears, put where it belongs.

Faces, sunglasses, hats and crowns are sprites (Microsoft's Fluent emoji in 3D, Twemoji for the flat style). Where the
eyes, the top of the head and the chin lie was measured on each face by eye and is written down in `FACES`, in
shares of the sprite's side. Glasses are the sprite with the lenses made clear; scarf, headphones and boat are drawn.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import cos, pi, sin
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from diptych.data import folders
from diptych.data.canvas import LIGHT, SCALE, Canvas, Colour, Point

FLUENT, TWEMOJI = "emoji_fluent_3d_128", "emoji_twemoji_72"
SPRITES: dict[str, str] = {
    "cat": "cat face",
    "dog": "dog face",
    "fox": "fox",
    "rabbit": "rabbit face",
    "panda": "panda",
    "bear": "bear",
    "lion": "lion",
    "tiger": "tiger face",
    "frog": "frog",
    "koala": "koala",
    "mouse": "mouse face",
    "pig": "pig face",
    "sunglasses": "sunglasses",
    "glasses": "glasses",
    "top hat": "top hat",
    "crown": "crown",
}


@dataclass(frozen=True)
class Face:
    """Where things are on a face, in hundredths of the sprite's side."""

    middle: float  # x of the axis of symmetry
    eyes: float  # y
    apart: float  # from eye to eye
    top: float  # y of the top of the head, between the ears
    wide: float  # the head at the height of the eyes
    chin: float  # y
    band: float | None = None  # y of the top of a headphone's band, where it is not just above `top`


FACES: dict[str, dict[str, Face]] = {
    "3d": {
        "cat": Face(50, 57.5, 25, 31, 76, 93),
        "dog": Face(49.7, 42, 19, 17, 78, 87),
        "fox": Face(49.5, 58, 25, 26, 66, 92),
        "rabbit": Face(50, 57.5, 19, 32, 75, 92),
        "panda": Face(50, 51, 25, 20, 82, 92),
        "bear": Face(50, 51, 25, 20, 82, 92),
        "lion": Face(49.5, 45, 25, 14, 82, 88),
        "tiger": Face(50, 48, 25, 13, 82, 91),
        "frog": Face(50, 30, 41, 19, 84, 93, band=6),
        "koala": Face(50, 58, 37, 23, 74, 92),
        "mouse": Face(49.7, 68, 25, 39, 58, 91),
        "pig": Face(50, 51, 28.5, 17, 78, 93),
    },
    "flat": {
        "cat": Face(50, 56, 33.5, 20, 88, 97),
        "dog": Face(50, 45, 28, 10, 78, 91),
        "fox": Face(49.5, 49, 31, 25, 82, 93),
        "rabbit": Face(50, 67, 31, 46, 70, 98),
        "panda": Face(50, 50, 30, 2, 88, 94),
        "bear": Face(50, 50, 28, 3, 88, 94),
        "lion": Face(49.7, 47, 25, 10, 90, 94),
        "tiger": Face(50, 50, 28, 5, 88, 93),
        "frog": Face(50, 21, 58, 17, 88, 93, band=-14),
        "koala": Face(50, 55, 31, 19, 74, 89),
        "mouse": Face(50, 61, 22.5, 28, 64, 91),
        "pig": Face(50, 47, 61, 7, 92, 93),
    },
}

# What a sprite of something worn measures, in hundredths of its side: lenses apart and their height; for a hat, the
# y that comes to lie on the top of the head.
LENSES = {
    "3d": {"sunglasses": (48.5, 48.0), "glasses": (48.0, 48.5)},
    "flat": {"sunglasses": (48.0, 50.5), "glasses": (50.0, 50.0)},
}
BRIM = {"3d": {"top hat": 83.0, "crown": 86.0}, "flat": {"top hat": 88.0, "crown": 89.0}}
HAT_WIDTH = {
    "3d": {"top hat": 0.63, "crown": 0.56},
    "flat": {"top hat": 0.57, "crown": 0.52},
}  # shares of the face's side

TINT = 0.36  # the share of the time's light that falls on the figure: it stays brighter than the ground


@lru_cache(maxsize=256)
def _names(folder: Path) -> dict[str, str]:
    rows = (line.split("\t") for line in (folder / "names.tsv").read_text(encoding="utf-8").splitlines())
    return {row[1]: row[0] for row in rows if len(row) > 1 and row[1]}


@lru_cache(maxsize=256)
def _load(root: Path, name: str, style: str) -> Image.Image:
    """A sprite, RGBA, at its own size; `ValueError` if its file is missing."""
    folder = root / (FLUENT if style == "3d" else TWEMOJI)
    file = _names(folder).get(SPRITES[name], "") if style == "3d" else f"{SPRITES[name]}.png"
    path = folder / file
    if not file or not path.is_file():
        raise ValueError(f"DIPTYCH_DATA: {folder} has no picture of {SPRITES[name]!r}")
    with Image.open(path) as picture:
        sprite = picture.convert("RGBA")
    if name == "sunglasses" and style == "flat":
        _glint(sprite)
    return _clear(sprite) if name == "glasses" else sprite


def _glint(sunglasses: Image.Image) -> None:
    """Draw a reflection on each lens: dark lenses are not to be taken for dark eyes, nor to vanish at night."""
    draw, unit = ImageDraw.Draw(sunglasses), sunglasses.width / 100
    for left in (17, 65):
        for shift, wide in ((0, 7), (10, 3)):
            corners = [
                (left + shift + 6, 42),
                (left + shift + 6 + wide, 42),
                (left + shift + wide, 58),
                (left + shift, 58),
            ]
            draw.polygon([(x * unit, y * unit) for x, y in corners], fill=(176, 196, 222, 255))


def _clear(glasses: Image.Image) -> Image.Image:
    """Glasses through whose lenses one sees: what is bright becomes pale and mostly transparent."""
    pixels = np.asarray(glasses).astype(np.float32)
    lens = np.clip((pixels[..., 2] - 130) / 60, 0, 1)[..., None]
    pale = pixels[..., :3] * 0.2 + np.array([240, 250, 255], np.float32) * 0.8
    colour = pixels[..., :3] * (1 - lens) + pale * lens
    opacity = pixels[..., 3:] * (1 - 0.28 * lens)
    return Image.fromarray(np.concatenate([colour, opacity], 2).astype(np.uint8))


@lru_cache(maxsize=64)
def _sprite(root: Path, name: str, style: str, time: str, side: int) -> Image.Image:
    """A sprite in the light of the time, `side` pixels a side."""
    sprite = _load(root, name, style).resize((side, side), Image.Resampling.BICUBIC)
    share = TINT * (0.5 if name in ("top hat", "sunglasses", "glasses") else 1.0)
    red, green, blue, opacity = sprite.split()
    tinted = [
        channel.point([round(value * (1 + (light - 1) * share)) for value in range(256)])
        for channel, light in zip((red, green, blue), LIGHT[time], strict=True)
    ]
    return Image.merge("RGBA", [*tinted, opacity])


def _paste(canvas: Canvas, name: str, x: float, y: float, side: float) -> None:
    pixels = round(side * SCALE / 2) * 2
    sprite = _sprite(folders.root(), name, canvas.style, canvas.time, pixels)
    canvas.image.paste(sprite, (round(x * SCALE - pixels / 2), round(y * SCALE - pixels / 2)), sprite)


def figure(canvas: Canvas, animal: str, worn: str, x: float, y: float, side: float, *, has_boat: bool = False) -> None:
    """Draw an animal with what it wears.

    Args:
        canvas: a finished background.
        x, y: the middle of the animal's sprite, in units of the canvas.
        side: the side of the sprite.
        has_boat: whether it sits in a boat.
    """
    for name in (FLUENT, TWEMOJI):
        if (name == FLUENT) == (canvas.style == "3d"):
            folders.folder(name)
    face = FACES[canvas.style][animal]
    unit = side / 100
    middle, top, chin = x + (face.middle - 50) * unit, y + (face.top - 50) * unit, y + (face.chin - 50) * unit
    eyes = y + (face.eyes - 50) * unit
    if not has_boat:
        _shadow(canvas, middle, chin, face.wide * unit)
    _paste(canvas, animal, x, y, side)
    if has_boat:
        _boat(canvas, middle, chin, side)
    if worn in ("sunglasses", "glasses"):
        apart, height = LENSES[canvas.style][worn]
        width = min(max(face.apart / apart * side * 1.04, 0.66 * side), 1.04 * side)
        _paste(canvas, worn, middle, eyes + (50 - height) / 100 * width, width)
    elif worn in ("top hat", "crown"):
        width = HAT_WIDTH[canvas.style][worn] * side * (0.84 if animal == "frog" else 1.0)
        _paste(canvas, worn, middle, top + (50 - BRIM[canvas.style][worn]) / 100 * width + 0.03 * side, width)
    elif worn == "scarf":
        _scarf(canvas, middle, chin, min(face.wide, 80) * unit, side)
    elif worn == "headphones":
        crest = top - 0.05 * side if face.band is None else y + (face.band - 50) * unit
        _headphones(canvas, middle, max(eyes, top + 0.28 * side), crest, face.wide * unit, side)


def _shadow(canvas: Canvas, x: float, y: float, wide: float) -> None:
    if canvas.is_soft:
        canvas.haze(x, y + 1, wide * 0.72, wide * 0.2, canvas.lit((44, 34, 60), 0.6), 190)
    else:
        mask = Image.new("L", (round(wide * 0.92 * SCALE), round(wide * 0.2 * SCALE)))
        ImageDraw.Draw(mask).ellipse((0, 0, mask.width - 1, mask.height - 1), fill=76)
        canvas.image.paste((16, 10, 40), (round(x * SCALE - mask.width / 2), round(y * SCALE - mask.height / 2)), mask)


def _tone(canvas: Canvas, colour: Colour) -> Colour:
    return canvas.lit(colour, TINT)


def _sag(x: float, y: float, wide: float, drop: float) -> list[Point]:
    """A line that hangs between two points at the height `y`, from left to right."""
    return [(x + wide * t, y + drop * (1 - t * t)) for t in np.linspace(-1, 1, 17).tolist()]


def _scarf(canvas: Canvas, x: float, chin: float, wide: float, side: float) -> None:
    red, deep, pale = _tone(canvas, (228, 40, 52)), _tone(canvas, (168, 22, 44)), _tone(canvas, (255, 236, 214))
    half = wide * 0.50
    high, drop, thick = chin - 0.13 * side, 0.10 * side, 0.17 * side
    left, tail = x + 0.10 * side, 0.17 * side
    low = high + drop + thick * 0.6
    end = low + 0.21 * side
    for k in range(5):
        at = left + tail * (0.1 + 0.2 * k)
        canvas.draw.line(
            (at * SCALE, (end - 1) * SCALE, (at + 0.4) * SCALE, (end + 0.045 * side) * SCALE), fill=deep, width=3
        )
    canvas.area(
        [(left, low), (left + tail, low - 1), (left + tail * 1.08, end), (left + 0.02 * side, end)], deep, glows=True
    )
    for share in (0.42, 0.78):
        y = low + (end - low) * share
        canvas.area(
            [
                (left, y),
                (left + tail * 1.06, y - 0.5),
                (left + tail * 1.06, y + 0.06 * side),
                (left + 1, y + 0.065 * side),
            ],
            pale,
            glows=True,
            depth=0.1,
        )
    upper, lower = _sag(x, high, half, drop), _sag(x, high + thick, half * 0.97, drop)
    cap = [(x + half + 0.03 * side, high + thick * 0.45)]
    other = [(x - half - 0.03 * side, high + thick * 0.45)]
    canvas.area([*upper, *cap, *reversed(lower), *other], red, glows=True)
    for t in (-0.72, -0.26, 0.26, 0.72):
        px, py, lean = x + half * t, high + drop * (1 - t * t), 0.03 * side * t
        canvas.area(
            [(px - 1.7, py), (px + 1.7, py), (px + 1.7 - lean, py + thick), (px - 1.7 - lean, py + thick)],
            pale,
            glows=True,
            depth=0.12,
        )


def _headphones(canvas: Canvas, x: float, middle: float, crest: float, wide: float, side: float) -> None:
    blue, pale, dark = _tone(canvas, (34, 150, 250)), _tone(canvas, (150, 216, 255)), _tone(canvas, (36, 44, 84))
    half = wide / 2 + 0.015 * side
    arc = [(x - half * cos(t), middle - (middle - crest) * sin(t)) for t in np.linspace(0, pi, 25).tolist()]
    pixels = [(px * SCALE, py * SCALE) for px, py in arc]
    canvas.draw.line(pixels, fill=dark, width=round(0.105 * side * SCALE), joint="curve")
    canvas.draw.line(pixels, fill=blue, width=round(0.07 * side * SCALE), joint="curve")
    if canvas.is_soft:
        shine = [(px - 0.6, py - 0.9) for px, py in pixels]
        canvas.draw.line(shine, fill=pale, width=max(1, round(0.018 * side * SCALE)), joint="curve")
    tall, thick = 0.17 * side, 0.075 * side
    for turn in (-1, 1):
        at = x + turn * half
        _pill(canvas, at - turn * thick * 0.75, middle, thick * 0.7, tall * 0.94, dark)
        _pill(canvas, at + turn * thick * 0.25, middle, thick, tall, blue)
        if canvas.is_soft:
            _pill(canvas, at + turn * thick * 0.15 - 0.4, middle - tall * 0.25, thick * 0.22, tall * 0.4, pale)


def _pill(canvas: Canvas, x: float, y: float, wide: float, high: float, colour: Colour) -> None:
    """An upright with round ends, `wide` and `high` from its middle."""
    arc = np.linspace(0, pi, 9).tolist()
    above = [(x - cos(t) * wide, y - high + wide - sin(t) * wide) for t in arc]
    below = [(x + cos(t) * wide, y + high - wide + sin(t) * wide) for t in arc]
    canvas.area([*above, *below], colour, glows=True)


def _boat(canvas: Canvas, x: float, chin: float, side: float) -> None:
    rim, foot, half = chin - 0.12 * side, chin + 0.24 * side, 0.66 * side
    wood, pale = _tone(canvas, (176, 104, 58)), _tone(canvas, (250, 208, 120))
    hull = [
        *_sag(x, rim, half, 0.05 * side),
        *reversed([(px, py) for px, py in _sag(x, foot - 0.05 * side, half * 0.72, 0.05 * side)]),
    ]
    canvas.area(hull, wood, glows=True)
    band = [*_sag(x, rim, half, 0.05 * side), *reversed(_sag(x, rim + 0.09 * side, half * 0.955, 0.05 * side))]
    canvas.area(band, pale, glows=True, depth=0.15)
    wave = 0.16 * side
    xs = np.linspace(-9, 137, 74).tolist()
    line = [(px, foot - 0.05 * side - wave * 0.22 * abs(cos(px / 8.5))) for px in xs]
    canvas.area([(px, py - 1.4) for px, py in line] + [(140, 136), (-10, 136)], (226, 244, 252), depth=0)
    canvas.area([*line, (140, 136), (-10, 136)], (24, 108, 188))
