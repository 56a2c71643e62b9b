"""Augmentation that does not leak into samples: the network is told what was done, and samples ask for nothing done.

Karras et al. 2022 (appendix F.2, after Karras et al. 2020): pictures are mirrored, turned, scaled, stretched and moved,
and nine numbers say how. They condition the network; all zero means an untouched picture, and that is what a sampler
asks for. Their filtered resampling is bicubic here, with the picture reflected at its borders, and a stretch's
strength is never negative, so that no two motions share their labels.

Mirroring alone may also go untold, where a mirrored world is as good as ours: then it stays out of captions that speak
of left or right.
"""

import math
import re
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.core.spelling import unknown

LABELS = 9  # mirrored, upside down, scale, turn (cos - 1, sin), stretch (cos, sin), shift (right, down)
SCALE, STRETCH, SHIFT = 2**0.2, 2**0.2, 0.125  # strengths of appendix F.2
MIRRORS = ("never", "told", "untold")
SIDES = re.compile(r"\b(?:left|right)(?:s|most|wards?|[ -]?hand(?:ed)?)?\b", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What may be done to a picture.

    Args:
        mirror: half of the pictures are mirrored; "told" says so in the labels, "untold" does not and leaves pictures
            alone whose caption names a side, "never" mirrors none.
        share: of the pictures for which each of the other five is done (0.12 in the paper), always told.
    """

    mirror: str = "never"
    share: float = 0.0

    def __post_init__(self) -> None:
        if self.mirror not in MIRRORS:
            raise unknown("mirror", self.mirror, MIRRORS)
        if not 0 <= self.share <= 1:
            raise ValueError(f"share must be from 0 to 1, not {self.share}")


def names_a_side(caption: str) -> bool:
    """Whether a caption would be wrong of the mirrored picture: it says left or right."""
    return SIDES.search(caption) is not None


def mirrors(settings: Augmentation, draw: np.random.Generator, caption: str) -> tuple[bool, float]:
    """Whether a picture is mirrored, and what its first label says of it. Always takes one number from `draw`."""
    wanted = draw.random() < 0.5
    if settings.mirror == "told":
        return wanted, float(wanted)
    return settings.mirror == "untold" and wanted and not names_a_side(caption), 0.0


def augment(
    picture: Tensor, draw: np.random.Generator, settings: Augmentation, caption: str = ""
) -> tuple[Tensor, Tensor]:
    """An augmented picture and its labels.

    Args:
        picture: (3, H, W) float32, -1..1.
        draw: decides; it gives the same numbers whatever the settings.

    Returns:
        a picture of the same shape, the given one to the bit where the labels are zero (unless mirrored untold), and
        labels (LABELS,) float32.
    """
    labels = torch.zeros(LABELS)
    is_mirrored, label = mirrors(settings, draw, caption)
    chances, (flip, turn, direction), strengths = draw.random(5), draw.random(3), draw.standard_normal(4)
    is_flipped, is_scaled, is_turned, is_stretched, is_shifted = (bool(chance < settings.share) for chance in chances)
    if is_mirrored:
        picture, labels[0] = picture.flip(-1), label
    if is_flipped and flip < 0.5:
        picture, labels[1] = picture.flip(-2), 1.0

    moved = np.eye(3)  # of points (right, down, 1) in pixels from the middle
    if is_scaled:
        moved = _scaling(SCALE ** strengths[0], SCALE ** strengths[0]) @ moved
        labels[2] = float(strengths[0])
    if is_turned:
        angle = (2 * turn - 1) * math.pi
        moved = _turning(angle) @ moved
        labels[3], labels[4] = math.cos(angle) - 1, math.sin(angle)
    if is_stretched:
        angle, strength = (2 * direction - 1) * math.pi, abs(float(strengths[1]))
        moved = _turning(angle) @ _scaling(STRETCH**strength, STRETCH**-strength) @ _turning(-angle) @ moved
        labels[5], labels[6] = strength * math.cos(angle), strength * math.sin(angle)
    if is_shifted:
        height, width = picture.shape[-2:]
        shift = np.eye(3)
        shift[:2, 2] = SHIFT * width * strengths[2], SHIFT * height * strengths[3]
        moved = shift @ moved
        labels[7], labels[8] = float(strengths[2]), float(strengths[3])
    return (_resampled(picture, moved) if labels[2:].any() else picture), labels


def _scaling(across: float, down: float) -> np.ndarray:
    return np.diag([across, down, 1.0])


def _turning(angle: float) -> np.ndarray:
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])


def _resampled(picture: Tensor, moved: np.ndarray) -> Tensor:
    """The picture whose points went where `moved` says."""
    height, width = picture.shape[-2:]
    units = np.diag([width / 2, height / 2, 1.0])  # of grid_sample: -1..1 from border to border
    origin = np.linalg.inv(units) @ np.linalg.inv(moved) @ units
    grid = F.affine_grid(torch.from_numpy(origin[:2]).float()[None], [1, 3, height, width], align_corners=False)
    found = F.grid_sample(picture[None], grid, mode="bicubic", padding_mode="reflection", align_corners=False)
    return found[0].clamp(-1, 1)
