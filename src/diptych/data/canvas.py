"""A canvas that knows the time of day and the style, so that a thing is drawn once, in daylight colours.

It turns a polygon into a gradient or a plain area, and a colour into what it looks like at sunset or at night.
Coordinates run from 0 to 128 in both directions, whatever the size in pixels; everything is drawn at twice the size
and reduced, which smooths the edges.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Point = tuple[float, float]

SIDE = 128  # the side of a picture in its own units
SCALE = 2  # pixels a unit while drawing

LIGHT: dict[str, tuple[float, float, float]] = {
    "day": (1.0, 1.0, 1.0),
    "sunset": (1.0, 0.76, 0.66),
    "night": (0.50, 0.49, 0.72),
}
SKY: dict[str, tuple[Colour, Colour, Colour]] = {  # at the top, in the middle, at the horizon
    "day": ((64, 148, 240), (124, 192, 250), (205, 234, 252)),
    "sunset": ((112, 62, 150), (240, 96, 110), (255, 196, 96)),
    "night": ((12, 16, 58), (28, 36, 92), (58, 66, 132)),
}
FLAT_SKY: dict[str, tuple[Colour, ...]] = {  # bands, from the top down
    "day": ((116, 198, 246),),
    "sunset": ((150, 78, 150), (222, 88, 122), (248, 132, 92), (255, 184, 92)),
    "night": ((26, 32, 86),),
}


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """The colour `share` of the way from `a` to `b`."""
    return (
        round(a[0] + (b[0] - a[0]) * share),
        round(a[1] + (b[1] - a[1]) * share),
        round(a[2] + (b[2] - a[2]) * share),
    )


@lru_cache(maxsize=1)
def _sphere() -> tuple[Image.Image, Image.Image]:
    """Light on a ball lit from above left, and the ball's outline; both (128, 128), 0..255."""
    y, x = np.mgrid[-1:1:128j, -1:1:128j]
    z = np.sqrt(np.clip(1 - x**2 - y**2, 0, 1))
    light = np.clip(0.5 + 0.5 * (-0.42 * x - 0.66 * y + 0.62 * z), 0, 1)
    edge = np.clip((1 - np.sqrt(x**2 + y**2)) * 64, 0, 1)
    return Image.fromarray((light * 255).astype(np.uint8)), Image.fromarray((edge * 255).astype(np.uint8))


@lru_cache(maxsize=4096)
def shaded_ball(width: int, height: int, colour: Colour) -> Image.Image:
    """A shaded ball, RGBA."""
    light, edge = (part.resize((width, height), Image.Resampling.BILINEAR) for part in _sphere())
    dark, bright = mix(colour, (20, 10, 50), 0.45), mix(colour, (255, 255, 245), 0.42)
    steps = np.linspace(0, 1, 256)[:, None]
    middle = np.array(colour, float)
    low, high = np.array(dark, float), np.array(bright, float)
    ramp = np.where(steps < 0.6, low + (middle - low) * steps / 0.6, middle + (high - middle) * (steps - 0.6) / 0.4)
    channels = [light.point(ramp[:, c].astype(int).tolist()) for c in range(3)]
    return Image.merge("RGBA", [*channels, edge])


@lru_cache(maxsize=512)
def soft_disc(width: int, height: int, strength: int) -> Image.Image:
    """A mask that fades from `strength` in the middle to 0 at the rim."""
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    fall = np.clip(1 - np.sqrt(x**2 + y**2), 0, 1)
    return Image.fromarray((strength * fall**1.3).astype(np.uint8))


@lru_cache(maxsize=8)
def _sky(time: str, style: str, horizon: int) -> Image.Image:
    side, low = SIDE * SCALE, horizon * SCALE
    rows = np.clip(np.arange(side) / low, 0, 1)
    if style == "flat":
        bands = np.array(FLAT_SKY[time], np.uint8)
        column = bands[np.minimum((rows**1.2 * len(bands)).astype(int), len(bands) - 1)]
    else:
        stops = np.array(SKY[time], float)
        column = np.stack([np.interp(rows, [0, 0.55, 1], stops[:, c]) for c in range(3)], 1).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(np.broadcast_to(column[:, None], (side, side, 3))))


class Canvas:
    """A picture under way. `image` is RGB, SIDE * SCALE pixels a side."""

    def __init__(self, time: str, style: str, horizon: int) -> None:
        self.time, self.style, self.is_soft = time, style, style == "3d"
        self.image = _sky(time, style, horizon).copy()
        self.draw = ImageDraw.Draw(self.image)

    def lit(self, colour: Colour, share: float = 1.0) -> Colour:
        """What a daylight colour looks like at this time of day; `share` is how much of the light's tint it takes."""
        r, g, b = (1 + (light - 1) * share for light in LIGHT[self.time])
        return round(colour[0] * r), round(colour[1] * g), round(colour[2] * b)

    def area(self, points: Sequence[Point], colour: Colour, *, glows: bool = False, depth: float = 0.35) -> None:
        """A filled polygon: bright above and darker below, or plain. `glows`: keep the colour as it is at night."""
        colour = colour if glows else self.lit(colour)
        pixels = [(x * SCALE, y * SCALE) for x, y in points]
        if not self.is_soft:
            self.draw.polygon(pixels, fill=colour)
            return
        left, right = int(min(x for x, _ in pixels)), int(max(x for x, _ in pixels)) + 1
        top, bottom = int(min(y for _, y in pixels)), int(max(y for _, y in pixels)) + 1
        mask = Image.new("L", (right - left, bottom - top))
        ImageDraw.Draw(mask).polygon([(x - left, y - top) for x, y in pixels], fill=255)
        bright, dark = mix(colour, (255, 250, 240), depth * 0.6), mix(colour, (15, 10, 50), depth)
        column = np.linspace(bright, dark, bottom - top).astype(np.uint8)[:, None]
        self.image.paste(Image.fromarray(column).resize(mask.size), (left, top), mask)

    def ball(self, x: float, y: float, radius: float, colour: Colour, *, squash: float = 1.0) -> None:
        """A disc in plain colour, or a shaded ball."""
        colour = self.lit(colour)
        wide, high = radius * SCALE, radius * SCALE * squash
        if self.is_soft:
            ball = shaded_ball(max(2, round(2 * wide)), max(2, round(2 * high)), colour)
            self.image.paste(ball, (round(x * SCALE - wide), round(y * SCALE - high)), ball)
        else:
            x, y = x * SCALE, y * SCALE
            self.draw.ellipse((x - wide, y - high, x + wide, y + high), fill=colour)

    def disc(self, x: float, y: float, radius: float, colour: Colour) -> None:
        """A plain disc in a colour that the time of day does not change."""
        x, y, radius = x * SCALE, y * SCALE, radius * SCALE
        self.draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)

    def line(self, points: Sequence[Point], width: float, colour: Colour) -> None:
        """A bent line, `width` units thick."""
        pixels = [(x * SCALE, y * SCALE) for x, y in points]
        self.draw.line(pixels, fill=self.lit(colour), width=max(1, round(width * SCALE)), joint="curve")

    def haze(self, x: float, y: float, wide: float, high: float, colour: Colour, strength: int) -> None:
        """A soft glow or shadow; only where the style is soft."""
        if self.is_soft:
            mask = soft_disc(round(2 * wide * SCALE), round(2 * high * SCALE), strength)
            self.image.paste(colour, (round((x - wide) * SCALE), round((y - high) * SCALE)), mask)
