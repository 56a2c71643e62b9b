"""Mirroring: half of the pictures are seen the other way round, where a mirrored world is as good as ours.

It goes untold, so a picture whose caption speaks of left or right stays as it is.
"""

import re

import numpy as np

SIDES = re.compile(r"\b(?:left|right)(?:s|most|wards?|[ -]?hand(?:ed)?)?\b", re.IGNORECASE)


def names_a_side(caption: str) -> bool:
    """Whether a caption would be wrong of the mirrored picture: it says left or right."""
    return SIDES.search(caption) is not None


def mirrored_by_chance(draw: np.random.Generator, caption: str) -> bool:
    """Whether a picture is mirrored at this sight. Always takes one number from `draw`."""
    return draw.random() < 0.5 and not names_a_side(caption)
