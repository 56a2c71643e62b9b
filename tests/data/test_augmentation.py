"""Augmentation: the labels say exactly what was done, and nothing done leaves the picture alone."""

import math

import numpy as np
import pytest
import torch

from diptych.core.randomness import generator
from diptych.data.augmentation import LABELS, SCALE, SHIFT, STRETCH, Augmentation, augment, names_a_side


def waves(height: int, width: int, moved: np.ndarray | None = None) -> torch.Tensor:
    """A smooth picture, known at every point; `moved` (3 x 3, in pixels from the middle) carries it elsewhere."""
    down, across = np.mgrid[0:height, 0:width] + 0.5
    points = np.stack((across - width / 2, down - height / 2, np.ones_like(down)))
    back = np.tensordot(np.linalg.inv(np.eye(3) if moved is None else moved), points, 1)
    colours = [np.sin(back[0] / 9 + k) * np.cos(back[1] / 11 - k) for k in range(3)]
    return torch.from_numpy(np.stack(colours)).float() * 0.9


def told(labels: torch.Tensor, height: int, width: int) -> np.ndarray:
    """The motion that labels describe, by the formulas of the paper."""
    a = labels.double().tolist()
    angle, direction, strength = math.atan2(a[4], a[3] + 1), math.atan2(a[6], a[5]), math.hypot(a[5], a[6])

    def turn(angle: float) -> np.ndarray:
        return np.array([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]])

    flips = np.diag([1 - 2 * a[0], 1 - 2 * a[1], 1])
    scale = np.diag([SCALE ** a[2], SCALE ** a[2], 1])
    stretch = turn(direction) @ np.diag([STRETCH**strength, STRETCH**-strength, 1]) @ turn(-direction)
    shift = np.array([[1, 0, SHIFT * width * a[7]], [0, 1, SHIFT * height * a[8]], [0, 0, 1]])
    return shift @ stretch @ turn(angle) @ scale @ flips


def test_labels_say_what_was_done() -> None:
    """Against the smooth picture carried by the motion that the labels name, where no border was reflected."""
    height, width = 64, 96
    picture, compared = waves(height, width), 0
    for sample in range(60):
        draw = generator(seed=0, sample=sample)
        found, labels = augment(picture, draw, Augmentation(mirror="told", share=0.5))
        motion = told(labels, height, width)
        expected = waves(height, width, motion)
        down, across = np.mgrid[0:height, 0:width] + 0.5
        points = np.stack((across - width / 2, down - height / 2, np.ones_like(down)))
        came_from = np.tensordot(np.linalg.inv(motion), points, 1)
        inside = (abs(came_from[0]) < width / 2 - 2) & (abs(came_from[1]) < height / 2 - 2)
        compared += int(inside.sum())
        assert (found - expected).abs().numpy()[:, inside].max(initial=0) < 0.02
    assert compared > 60 * height * width // 4


def test_labels_of_zero_are_the_picture_itself() -> None:
    picture = torch.rand(3, 8, 8) * 2 - 1
    settings = Augmentation(mirror="told", share=0.1)
    results = [augment(picture, generator(seed=1, sample=sample), settings) for sample in range(100)]
    untouched = [found for found, labels in results if not labels.any()]
    assert len(untouched) > 20
    assert all(torch.equal(found, picture) for found in untouched)
    assert all(labels.shape == (LABELS,) and labels.dtype == torch.float32 for _, labels in results)
    assert not augment(picture, generator(seed=1), Augmentation())[1].any()


def test_a_mirrored_picture_is_told_exactly() -> None:
    picture = torch.rand(3, 4, 6)
    for sample in range(20):
        found, labels = augment(picture, generator(seed=2, sample=sample), Augmentation(mirror="told"))
        assert torch.equal(found, picture.flip(-1) if labels[0] else picture)
        assert not labels[1:].any()


def test_an_untold_mirror_spares_captions_that_name_a_side() -> None:
    picture, settings = torch.rand(3, 4, 6), Augmentation(mirror="untold")

    def mirrored(caption: str) -> int:
        results = [augment(picture, generator(seed=3, sample=n), settings, caption) for n in range(200)]
        assert not any(labels.any() for _, labels in results)
        return sum(torch.equal(found, picture.flip(-1)) for found, _ in results)

    assert 70 < mirrored("a cat in bright light") < 130  # within four standard deviations of a half
    assert mirrored("a cat on the left") == 0


@pytest.mark.parametrize("caption", ["the right hand", "Leftmost", "a left-handed man", "upper right", "to the left."])
def test_captions_that_name_a_side(caption: str) -> None:
    assert names_a_side(caption)


@pytest.mark.parametrize("caption", ["", "bright", "a copyrighted cleft", "uprights"])
def test_captions_that_name_none(caption: str) -> None:
    assert not names_a_side(caption)


def test_every_part_of_the_augmentation_is_rare_as_asked() -> None:
    """400 draws at 0.12; three standard deviations are 0.05. Up and down is drawn, and then happens half the time."""
    picture = torch.zeros(3, 4, 4)
    labels = torch.stack(
        [augment(picture, generator(seed=4, sample=n), Augmentation(share=0.12))[1] for n in range(400)]
    )
    shares = (labels != 0).float().mean(0)
    assert shares[0] == 0
    assert shares[1] == pytest.approx(0.06, abs=0.04)
    assert shares[2:] == pytest.approx(np.full(7, 0.12), abs=0.05)


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="unknown mirror 'tol'; did you mean 'told'"):
        Augmentation(mirror="tol")
    with pytest.raises(ValueError, match="share must be from 0 to 1"):
        Augmentation(share=1.5)
