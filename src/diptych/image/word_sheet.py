"""One picture of the maps of words: a row a word, a column a step, each map as heat over the guess of that step."""

from collections.abc import Sequence

import numpy as np
from PIL import Image
from torch import Tensor

from diptych.image.film import filmstrip
from diptych.image.photo import to_picture
from diptych.image.word_maps import WordMaps

LARGEST_CELL = 256  # pixels of a picture's longer side
UNDER = 0.35  # how bright the picture under the heat is
# Colours of heat from none to most, each brighter than the one before: they can be told apart in grey, too.
HEAT = ((0.0, (0, 0, 0)), (0.35, (110, 26, 96)), (0.65, (222, 92, 52)), (1.0, (255, 244, 178)))


def word_sheet(
    maps: WordMaps,
    previews: Tensor,
    captions: Sequence[Sequence[str]],
    *,
    places: Sequence[int],
    steps: range,
    columns: Sequence[int],
    sample: int = 0,
) -> Image.Image:
    """The guesses themselves in the first row, then a row a word; the last column is the mean over the steps.

    Args:
        previews: (steps, count, 3, H, W), uint8.
        captions: the lines under each column; the last ones under the mean.
        places: which of the words; steps: those that count; columns: those that are shown.
    """
    whole = to_picture(previews[steps.stop - 1, sample])
    size = _cell(whole.size)
    guesses = [to_picture(previews[step, sample]).resize(size, Image.Resampling.BILINEAR) for step in columns]
    guesses.append(whole.resize(size, Image.Resampling.BILINEAR))
    rows, names = [guesses], ["the network's guess of the finished picture"]
    for place in places:
        own = maps.maps[:, sample, place].float()
        mean = own[steps.start : steps.stop].mean(0)
        shown = [*(own[step] for step in columns), mean]
        least, most = min(float(one.min()) for one in shown), max(float(one.max()) for one in shown)
        scale = most - least or 1.0
        rows.append([heated(guess, (one - least) / scale) for guess, one in zip(guesses, shown, strict=True)])
        bounds = f"{100 * least:.1f} % (dark) to {100 * most:.1f} % (bright)"
        names.append(f"{maps.names[place]}: {bounds} of a place's attention")
    return filmstrip(rows, captions, names)


def heated(picture: Image.Image, heat: Tensor) -> Image.Image:
    """A map of heat (h, w), 0..1, over a picture of any size, which shows through in dim grey."""
    grid = Image.fromarray(heat.clamp(0, 1).numpy().astype(np.float32))
    warm = np.asarray(grid.resize(picture.size, Image.Resampling.BICUBIC)).clip(0, 1)[..., None]
    marks, colours = [mark for mark, _ in HEAT], np.array([colour for _, colour in HEAT], dtype=np.float32)
    colour = np.concatenate([np.interp(warm, marks, colours[:, channel]) for channel in range(3)], axis=-1)
    grey = UNDER * np.asarray(picture.convert("L"), dtype=np.float32)[..., None]
    # As light adds up: what is dim stays below what is warm.
    lit = colour + grey * (1 - colour / 255)
    return Image.fromarray(lit.round().clip(0, 255).astype(np.uint8))


def _cell(size: tuple[int, int]) -> tuple[int, int]:
    """Small pictures are enlarged by a whole number, large ones shrunk."""
    longer = max(size)
    factor = max(1, LARGEST_CELL // longer) if longer <= LARGEST_CELL else LARGEST_CELL / longer
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))
