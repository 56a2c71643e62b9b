"""A picture's generation told in plain language while it happens, from its own numbers and previews."""

from typing import TYPE_CHECKING, Any

import numpy as np

from diptych.cli.explain_text import tell

if TYPE_CHECKING:
    from PIL import Image

    from diptych.core.generation import Generation
    from diptych.image.record import ImageResult, ImageStep

TOLD = 9  # steps that get a line, of however many
# Words for colours, as sRGB; the nearest in Oklab (Ottosson 2020) names a pixel.
COLOURS = {
    "black": (12, 12, 14), "dark grey": (70, 70, 74), "grey": (128, 128, 128), "light grey": (195, 195, 198),
    "white": (248, 248, 246), "red": (215, 35, 35), "dark red": (125, 20, 25), "pink": (245, 165, 185),
    "orange": (250, 140, 35), "brown": (125, 75, 35), "dark brown": (70, 42, 25), "sandy yellow": (230, 205, 150),
    "golden yellow": (250, 195, 50), "yellow": (250, 235, 60), "light green": (150, 215, 110), "green": (50, 155, 60),
    "dark green": (25, 80, 40), "turquoise": (60, 190, 185), "light blue": (155, 210, 245), "blue": (45, 115, 215),
    "dark blue": (22, 35, 95), "purple": (125, 60, 165), "lilac": (195, 165, 225), "salmon": (245, 135, 110),
}  # fmt: skip


def explain_image(generation: "Generation[ImageStep, ImageResult]", wanted: dict[str, Any], name: str = "") -> None:
    """Tell a generation on standard output.

    Args:
        wanted: the settings, as `ImageModel.generate` takes them, and what the command adds to them.
        name: "second pass" of an enlargement.
    """
    teller = ImageTeller()
    tell(opening_again(wanted["enlarge"]) if name == "second pass" else opening(wanted))
    for step in generation:
        line = teller.line(step)
        if line:
            tell(line)
    tell(teller.closing(generation.result()))


def opening(wanted: dict[str, Any]) -> str:
    reading = (
        f"A network that has seen many pictures drown in static looks at it, reads {_words(wanted)} and says which "
        "part of what it sees is static. What is left is its guess of the finished picture."
    )
    drawn = f"drawn with seed {wanted['seed']}{_turned(wanted)}"
    if "picture" in wanted and wanted["strength"] < 1:
        begun = _from_a_picture(wanted, drawn)
        steps = "Each of these steps"
    else:
        begun = f"It starts from static, like a television without a station, {drawn}: there is no picture in it yet."
        steps = f"Each of the {wanted['steps']} steps"
    goes_on = f"{steps} takes a bit of the static away and asks again."
    return " ".join([begun, reading, goes_on, *_kept(wanted), *_guided(wanted)])


def opening_again(enlarge: dict[str, Any]) -> str:
    """Of the second pass."""
    return (
        f"The picture is enlarged {enlarge['factor']:g} times, which adds no details. It is covered with static again "
        f"and painted over in the last {percent(enlarge['strength'])} of the steps: what is where stays, edges and "
        "details are drawn anew at the larger size."
    )


def _words(wanted: dict[str, Any]) -> str:
    to, share = wanted.get("to_prompt"), wanted.get("share", 0)
    if to is None or not share:
        return f"your words '{wanted['prompt']}'"
    return f"something {percent(share)} of the way from your words '{wanted['prompt']}' to '{to}'"


def _turned(wanted: dict[str, Any]) -> str:
    """Where static comes from more than one seed."""
    turns = [(seed, share) for seed, share in wanted.get("turns", ()) if share]
    if wanted.get("to_seed") is not None and wanted.get("share"):
        turns.append((wanted["to_seed"], wanted["share"]))
    return "".join(f" and turned {percent(share)} of the way to that of seed {seed}" for seed, share in turns)


def _from_a_picture(wanted: dict[str, Any], drawn: str) -> str:
    left = max(1, int(wanted["steps"] * wanted["strength"] + 1e-9))
    return (
        f"It starts from your picture '{wanted['picture']['path']}' under static, {drawn}: as much of it as is left "
        f"when {left} of {wanted['steps']} steps are to come, which is strength {wanted['strength']:g}. What still "
        "shines through decides what will be where."
    )


def _kept(wanted: dict[str, Any]) -> list[str]:
    """What a mask keeps."""
    told = []
    if "outpaint" in wanted:
        sides = ", ".join(f"{pixels} {side}" for side, pixels in wanted["outpaint"].items() if pixels)
        told.append(f"Room is added around your picture '{wanted['picture']['path']}' (pixels: {sides}).")
    if "mask" in wanted or "outpaint" in wanted:
        where = "that room" if "mask" not in wanted else "where the mask is white"
        told.append(
            f"Only {where} is painted: everywhere else each guess is replaced by your picture, so that what is painted "
            "fits what surrounds it, and in the end its own pixels are put back there."
        )
    return told


def _guided(wanted: dict[str, Any]) -> list[str]:
    scale = wanted["guidance_scale"]
    if scale == 0:
        return ["Guidance is 0: your words are not read at all."]
    if scale == 1:
        return []
    against = f"with '{wanted['negative_prompt']}'" if wanted.get("negative_prompt") else "with no words at all"
    if "weaker" in wanted:
        against = f"through the weaker model '{wanted['weaker']}'"
    told = [f"Each time it also guesses {against}, and goes {scale:g} times the way from that guess to yours."]
    if "guidance_interval" in wanted:
        low, high = wanted["guidance_interval"]
        bounds = f"{low:g} and up" if high is None else f"{low:g} to {high:g}"
        told.append(f"It does so only while static is {bounds} times as strong as the picture.")
    return told


class ImageTeller:
    """Turns steps into sentences, each in comparison with the step told before it."""

    def __init__(self) -> None:
        self.before: ImageStep | None = None
        self.look: Look | None = None

    def line(self, step: "ImageStep") -> str | None:
        """What is to be said of a step; None for one that is passed over."""
        if step.index not in told_steps(step.total):
            return None
        look = Look(step.preview())
        share = noise_words(step.noise_share)
        parts = [f"Step {step.index + 1} of {step.total}: the picture {share}; {self._guess(step, look)}"]
        if step.guidance_push > 0:
            parts.append(self._pushed(step))
        self.before, self.look = step, look
        return "; ".join(parts) + "."

    def _guess(self, step: "ImageStep", look: "Look") -> str:
        if self.before is None or self.look is None:
            return f"the network's first guess shows {look.shape()}: {look.colours()}"
        size = float(self.before.denoised.square().mean().sqrt())
        change = float((step.denoised - self.before.denoised).square().mean().sqrt()) / max(size, 1e-9)
        if change < 0.005:
            return f"the guess is the same as at step {self.before.index + 1}"
        since = f"since step {self.before.index + 1} the guess changed by {percent(change)}"
        news = look.news(self.look)
        if change > 0.5:
            return f"{since}, so it is still making up its mind: now {look.shape()}, {look.colours()}"
        if change > 0.15:
            return f"{since}: {news or f'the colours stay, {look.shape()}'}"
        if news:
            return f"{since}: {news}"
        return f"{since}: only details are left, with {look.shape()}"

    def _pushed(self, step: "ImageStep") -> str:
        if step.guidance_push < 0.01:
            return "guidance hardly pushed it any more"
        pushed = f"guidance pushed it by {percent(step.guidance_push)} of its strength"
        if self.before is None:
            return f"{pushed} towards your words"
        ratio = step.guidance_push / max(self.before.guidance_push, 1e-9)
        if ratio > 1.5:
            return f"{pushed}, more than before"
        return f"{pushed}, less than before" if ratio < 0.67 else pushed

    def closing(self, result: "ImageResult") -> str:
        look = Look(result.image)
        one = "The picture is" if len(result.images) == 1 else f"All {len(result.images)} pictures are"
        first = "" if len(result.images) == 1 else " (told of the first)"
        return (
            f"{one} finished{first}: no static is left. It shows {look.shape()}; {look.colours()}. Whether it shows "
            f"what you asked for, only you can see; seed {result.seed} with the same words and settings paints it "
            "again, another seed starts from other static and ends in another picture."
        )


def told_steps(total: int) -> set[int]:
    """Steps that get a line: all of a few, else evenly spread, the first and the last among them."""
    if total <= TOLD:
        return set(range(total))
    return {round(place * (total - 1) / (TOLD - 1)) for place in range(TOLD)}


class Look:
    """What can be measured of a picture without knowing what it shows.

    Attributes:
        names: for the upper, middle and lower third, its commonest colours and their shares.
        centre: the same for the place where the thing that a picture is of mostly is.
        edges: mean step of brightness from pixel to pixel, 0..255, at 128 pixels a side.
        contrast: standard deviation of brightness, 0..255.
    """

    def __init__(self, picture: "Image.Image") -> None:
        pixels = np.asarray(picture.convert("RGB").resize((128, 128)), dtype=np.float64)
        brightness = pixels @ np.array([0.2126, 0.7152, 0.0722])
        self.edges = float(np.mean([np.abs(np.diff(brightness, axis=axis)).mean() for axis in (0, 1)]))
        self.contrast = float(brightness.std())
        self.names = [_common_colours(third) for third in np.array_split(pixels, 3, axis=0)]
        self.centre = _common_colours(pixels[48:104, 44:84])

    def shape(self) -> str:
        if self.contrast < 12:
            return "hardly more than an even fog"
        if self.edges < 1.6:
            return "blurred patches"
        if self.edges < 3.2:
            return "soft shapes without outlines"
        return "shapes with soft edges" if self.edges < 4.6 else "clear edges and details"

    def colours(self) -> str:
        upper, middle, lower = (_shares(names) for names in self.names)
        if upper == middle == lower:
            whole = f"all of it is {upper}"
        elif upper == middle:
            whole = f"the upper two thirds are {upper}, the lower third {lower}"
        elif middle == lower:
            whole = f"the upper third is {upper}, all below it {lower}"
        else:
            whole = f"the upper third is {upper}, the middle {middle}, the lower third {lower}"
        thing = self.thing()
        return f"{whole}, with something {thing} in the centre" if thing else whole

    def thing(self) -> str:
        """The colour in the centre where it is not one of its surroundings', else ""."""
        around = {colour for names in self.names[1:] for colour, _ in names}
        colour, share = self.centre[0]
        return colour if colour not in around and share >= 0.3 else ""

    def news(self, before: "Look") -> str:
        """What is new since an earlier look, "" when nothing to speak of is."""
        parts = []
        for place, name in enumerate(("upper third", "middle", "lower third")):
            now, then = self.names[place], before.names[place]
            if now[0][0] not in [colour for colour, _ in then]:
                parts.append(f"the {name} turned from {then[0][0]} to {_shares(now)}")
            elif len(now) > 1 and now[1][0] not in [colour for colour, _ in then]:
                parts.append(f"{now[1][0]} appeared in the {name}")
        if self.thing() and self.thing() != before.thing():
            parts.append(f"something {self.thing()} came up in the centre")
        gain = self.edges / max(before.edges, 1e-9) - 1
        if self.shape() != before.shape():
            parts.append(f"{before.shape()} became {self.shape()}")
        elif gain > 0.12:
            parts.append(f"outlines grew {percent(gain)} sharper")
        return ", ".join(parts)


def _common_colours(pixels: np.ndarray) -> list[tuple[str, float]]:
    """The commonest colour of some pixels (..., 3) and the next one if it covers a fifth; with their shares."""
    names = list(COLOURS)
    palette = _oklab(np.array([COLOURS[name] for name in names], dtype=np.float64))
    distances = ((_oklab(pixels.reshape(-1, 3))[:, None] - palette) ** 2).sum(-1)
    shares = np.bincount(distances.argmin(1), minlength=len(names)) / len(distances)
    first, second = ((names[place], float(shares[place])) for place in np.argsort(-shares, kind="stable")[:2])
    return [first, second] if second[1] >= 0.2 else [first]


def _shares(names: list[tuple[str, float]]) -> str:
    first, share = names[0]
    if share >= 0.75:
        return first
    return f"mostly {first}" if len(names) == 1 else f"{first} and {names[1][0]}"


def _oklab(colours: np.ndarray) -> np.ndarray:
    """sRGB 0..255 (..., 3) to Oklab, where distances are about as large as they look (Ottosson 2020)."""
    value = colours / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    cones = linear @ np.array(
        [[0.4122214708, 0.2119034982, 0.0883024619], [0.5363325363, 0.6806995451, 0.2817188376],
         [0.0514459929, 0.1073969566, 0.6299787005]]
    )  # fmt: skip
    lab: np.ndarray = np.cbrt(cones) @ np.array(
        [[0.2104542553, 1.9779984951, 0.0259040371], [0.7936177850, -2.4285922050, 0.7827717662],
         [-0.0040720468, 0.4505937099, -0.8086757660]]
    )  # fmt: skip
    return lab


def noise_words(share: float) -> str:
    if share > 0.995:
        return "is nothing but static"
    if share < 0.005:
        return "has hardly any static left"
    return f"is still {percent(share)} noise" if share > 0.1 else f"is only {percent(share)} noise now"


def percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.0995 else f"{100 * share:.1f} %"
