"""`diptych noise`: a photo turns into static, the forward process that an image model learns to undo."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diptych.cli import UsageError, frame

if TYPE_CHECKING:
    from diptych.image.path import Node

STEPS = 1000  # of the discrete process (Ho et al. 2020)
LONGEST = 256  # pixels of the longer side in the strip
MOST = 50


def noise(
    photo: Annotated[Path, typer.Argument(help="Any picture file.")],
    out: Annotated[Path | None, typer.Option(help="The filmstrip to write (.png). [PHOTO-noise.png]")] = None,
    pictures: Annotated[int, typer.Option(help="Pictures in the strip, from the photo to pure static.")] = 8,
    path: Annotated[str, typer.Option(help="How the noise grows: ddpm-linear, rectified-flow, ...")] = "ddpm-linear",
    seed: frame.Seed = None,
) -> None:
    """Write a filmstrip of a photo turning into static over 1000 steps."""
    if not 2 <= pictures <= MOST:
        raise UsageError(f"pictures must be from 2 to {MOST}, not {pictures}")
    out = frame.output(out, ".png")
    from diptych.core.randomness import normal
    from diptych.image.film import filmstrip, save_strip
    from diptych.image.path import path_named
    from diptych.image.photo import open_picture, to_picture, to_tensor

    with frame.settings():
        way = path_named(path)
        number = frame.seed_or_fresh(seed)
    opened = open_picture(photo)
    scale = LONGEST / max(opened.size)
    if scale < 1:
        opened = opened.resize((max(1, round(opened.width * scale)), max(1, round(opened.height * scale))))
    clean = to_tensor(opened)
    draw = normal(clean.shape, seed=number)  # one draw for all pictures: it is the same static that grows
    times = [round(STEPS * place / (pictures - 1)) for place in range(pictures)]
    nodes = [way.node(time / STEPS) if time else way.at_ratio(0) for time in times]
    frames = []
    for node in nodes:
        norm = math.hypot(node.alpha, node.sigma)  # 1 on paths that keep the variance; shown alike on the others
        frames.append(to_picture((node.alpha * clean + node.sigma * draw) / norm))
    ratios = [_ratio(node) for node in nodes]
    shares = [f"{100 * node.noise_share:.0f} %" for node in nodes]
    captions = [
        [f"t = {time}", f"signal to noise {ratio}" if node.sigma else ratio, decibel, f"{share} noise"]
        for time, node, (ratio, decibel), share in zip(times, nodes, ratios, shares, strict=True)
    ]
    strip = filmstrip([frames], captions)
    out = out or Path(f"{frame.unused(f'{photo.stem}-noise', '.png')}.png")
    save_strip(strip, out)
    print(f"{'t':>5} {'alpha':>7} {'sigma':>7} {'signal:noise':>13} {'dB':>8} {'noise':>6}")
    for time, node, (ratio, decibel), share in zip(times, nodes, ratios, shares, strict=True):
        level = f"{time:>5} {node.alpha:>7.4f} {node.sigma:>7.4f}"
        print(f"{level} {ratio:>13} {decibel.removesuffix(' dB'):>8} {share:>6}")
    print(f"\n{out}: {pictures} pictures, {strip.width} x {strip.height}, path {way.name}, seed {number}")


def _ratio(node: "Node") -> tuple[str, str]:
    """alpha^2 / sigma^2 as a proportion, and in decibels."""
    if node.sigma == 0:
        return "no noise", "inf dB"
    if node.alpha == 0:
        return "no signal", "-inf dB"
    ratio = math.exp(node.log_snr)
    larger = max(ratio, 1 / ratio)
    shown = f"{larger:.1f}" if larger < 100 else f"{larger:,.0f}"
    return f"{shown} : 1" if ratio >= 1 else f"1 : {shown}", f"{10 * math.log10(ratio):+.1f} dB"
