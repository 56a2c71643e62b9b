"""Figures on held-out pictures: from the definition, and the same however the work is cut into batches."""

import math
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diptych.core.estimate import mean
from diptych.core.randomness import normal
from diptych.image.autoencoder import Autoencoder
from diptych.image.condition import Condition
from diptych.image.denoiser import Denoiser
from diptych.image.model import ImageModel
from diptych.image.path import ddpm_cosine, ddpm_linear, path_named
from diptych.image.validation import LEVELS, NOISE, DenoisingLoss, _overall, denoising_loss, fidelity

PATH = ddpm_cosine()


class Silence(nn.Module):
    """Predicts no noise, and remembers at which levels it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.asked: list[float] = []

    def forward(self, x: Tensor, log_snr: Tensor, *told: Tensor | None) -> Tensor:
        self.asked += log_snr.tolist()
        return torch.zeros_like(x)


class Zeroes(Silence):
    """Knows that the clean pictures are all 0, and so what the noise is."""

    def forward(self, x: Tensor, log_snr: Tensor, *told: Tensor | None) -> Tensor:
        return x / torch.sigmoid(-log_snr).sqrt()[:, None, None, None]


def measured(network: nn.Module, count: int, *, seed: int = 0, batch: int = 32) -> DenoisingLoss:
    condition = Condition(torch.zeros(count, 1, 1), torch.ones(count, 1, dtype=torch.bool))
    denoiser = Denoiser(network, "noise", PATH)
    return denoising_loss(denoiser, torch.zeros(count, 2, 4, 4), condition, seed=seed, batch=batch)


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 3, 64, 64), dtype=np.uint8)


def test_the_loss_does_not_depend_on_the_batch_and_repeats_to_the_last_digit(
    tiny: ImageModel, pictures: np.ndarray
) -> None:
    captions = ["a cat", "a dog at night", ""]
    one, seven, many, again = (tiny.noise_loss(pictures, captions, batch=batch) for batch in (1, 7, 32, 32))
    assert many == again
    for other in (one, seven):
        assert other.overall.value == pytest.approx(many.overall.value, rel=1e-6)
        assert [level.loss.value for level in other.levels] == pytest.approx(
            [level.loss.value for level in many.levels], rel=2e-6
        )
    assert tiny.noise_loss(pictures, captions, seed=1) != many


def test_with_few_pictures_each_is_noised_at_every_level_by_its_own_draw() -> None:
    """Of a network that predicts nothing the loss is the noise's own square, and noise is keyed by place and level."""
    squares = np.array(
        [
            [
                normal((2, 4, 4), seed=3, sample=k, step=level, stream=NOISE).square().mean().item()
                for level in range(10)
            ]
            for k in range(5)
        ]
    )
    found = measured(Silence(), 5, seed=3)
    assert [level.loss.value for level in found.levels] == pytest.approx(squares.mean(0), rel=1e-5)
    expected = mean(squares.mean(1))  # a picture's levels are not independent: one sample a picture
    assert found.overall.value == pytest.approx(expected.value, rel=1e-5)
    assert found.overall.interval == pytest.approx(expected.interval, rel=1e-5)


@pytest.mark.parametrize(("count", "each"), [(1, 10), (20, 10), (150, 5), (300, 2), (600, 1)])
def test_levels_get_equal_shares_of_the_pictures(count: int, each: int) -> None:
    found = measured(Silence(), count, batch=512)
    assert [level.loss.count for level in found.levels] == [count * each // LEVELS] * LEVELS
    assert found.overall.count == count
    assert found.overall.value == pytest.approx(np.mean([level.loss.value for level in found.levels]))
    assert (found.overall.interval is None) == (count == 1)


def test_times_are_drawn_within_their_level() -> None:
    network = Silence()
    found = measured(network, 30)
    ends = np.array([level.log_snr for level in found.levels])
    assert (ends[:-1, 1] == ends[1:, 0]).all()
    assert ends[0, 0] == PATH.node(PATH.end).log_snr
    assert ends[-1, 1] == pytest.approx(PATH.node(PATH.start).log_snr)
    asked = np.array(network.asked).reshape(30, LEVELS)  # picture k begins at level k, as the plan says
    for k, levels in enumerate(asked):
        for turn, log_snr in enumerate(levels):
            clean, noisy = ends[(k + turn) % LEVELS]
            assert noisy - 1e-3 <= log_snr <= clean + 1e-3
    assert len(np.unique(asked)) == 300, "not one time twice"


def test_it_is_zero_for_who_knows_and_one_for_who_is_silent() -> None:
    assert measured(Zeroes(), 40).overall.value < 1e-9
    silent = measured(Silence(), 400).overall
    assert silent.interval is not None
    assert silent.interval[0] < 1 < silent.interval[1]
    assert silent.interval[1] - silent.interval[0] < 0.05


def test_the_interval_holds_in_about_95_of_100_cases() -> None:
    """60 pictures of unlike difficulty, at 2 of 10 unlike levels each: what is drawn anew are the pictures."""
    random, levels = np.random.default_rng(0), np.linspace(0.1, 2, LEVELS)
    held = 0
    for _ in range(1000):
        losses = levels * (1 + 0.3 * random.standard_normal((60, 1)) + 0.1 * random.standard_normal((60, LEVELS)))
        losses = np.stack([losses[k, [k % 5, k % 5 + 5]] for k in range(60)])
        low, high = _overall(losses, groups=5).interval or (0, 0)
        held += low <= levels.mean() <= high
    assert held / 1000 == pytest.approx(0.94, abs=0.02)


def test_a_network_that_has_come_apart_is_not_taken_for_one_that_was_not_asked() -> None:
    """What is no number stays none, at its level and on the whole."""

    class Broken(Silence):
        def forward(self, x: Tensor, log_snr: Tensor, *told: Tensor | None) -> Tensor:
            return torch.where(log_snr[:, None, None, None] > 3.6, torch.nan, torch.zeros_like(x))

    found = measured(Broken(), 20)
    assert np.isnan(found.overall.value)
    assert np.isnan(found.levels[0].loss.value)
    assert found.levels[9].loss.value == pytest.approx(1, abs=0.2)


def test_the_loss_of_a_log_names_its_levels_from_clean_to_noisy() -> None:
    figures = measured(Silence(), 2).figures("noise_loss")
    names = [name for name in figures if name.count("/") == 1 and "level" in name]
    assert names == [f"noise_loss/level-{number:02d}" for number in range(1, 11)]
    assert figures["noise_loss/count"] == figures["noise_loss/level-01/count"] == 2


def test_pictures_without_captions_or_of_another_size_are_refused(tiny: ImageModel, pictures: np.ndarray) -> None:
    with pytest.raises(ValueError, match="a caption for each picture, not 1 for 3"):
        tiny.noise_loss(pictures, ["a cat"])
    with pytest.raises(ValueError, match="'tiny' paints 64 x 64 pixels; these pictures are 32 x 48"):
        tiny.noise_loss(pictures[:1, :, :48, :32], ["a cat"])


def test_other_paths_have_levels_of_their_own() -> None:
    condition = Condition(torch.zeros(3, 1, 1), torch.ones(3, 1, dtype=torch.bool))
    found = denoising_loss(Denoiser(Silence(), "noise", ddpm_linear()), torch.zeros(3, 1, 2, 2), condition)
    assert found.levels[-1].log_snr[1] == pytest.approx(ddpm_linear().node(1.0).log_snr)


@pytest.mark.parametrize("prediction", ["image", "v", "velocity", "edm"])
def test_the_loss_is_of_the_noise_whatever_is_predicted_and_finite_at_pure_noise(prediction: str) -> None:
    """Pictures that are all 0, and a network that says 0: who predicts the picture knows all; who predicts v or the
    velocity is off by the noise, of which it implies a part."""
    condition = Condition(torch.zeros(200, 1, 1), torch.ones(200, 1, dtype=torch.bool))
    denoiser = Denoiser(Silence(), prediction, path_named("rectified-flow"))
    found = denoising_loss(denoiser, torch.zeros(200, 1, 4, 4), condition)
    for level in found.levels:
        assert math.isfinite(level.log_snr[0] + level.log_snr[1])
    if prediction == "image":
        assert found.overall.value == 0
    elif prediction == "velocity":
        # x = sigma n and D = x - sigma 0 = sigma n, so the noise implied is (x - alpha D) / sigma = sigma n: alpha^2.
        assert found.overall.value == pytest.approx(1 / 3, rel=0.1)


# ---- the autoencoder --------------------------------------------------------------------------------------------


def test_fidelity_of_a_darker_copy_in_closed_form() -> None:
    """Every pixel lower by 0.1 of a range of 2: 10 log10(4 / 0.01) dB."""

    class Darker:
        shift = torch.zeros(1)
        moments = staticmethod(lambda x: (x, x))
        decoder = staticmethod(lambda x: x - 0.1)

    pictures = np.full((5, 3, 16, 16), 150, dtype=np.uint8)
    found = fidelity(cast(Autoencoder, Darker()), pictures, batch=2)
    assert found.psnr_db.value == pytest.approx(10 * np.log10(400), abs=1e-3)
    assert found.absolute_error.value == pytest.approx(0.1, abs=1e-6)
    assert (found.ssim.count, found.psnr_db.count) == (5, 5)
    assert set(found.figures()) >= {"psnr_db", "psnr_db/low", "ssim", "ssim/high", "absolute_error/count"}


def test_what_lies_outside_of_a_picture_is_cut_off() -> None:
    """White comes back brighter than white: on a screen that is white, and the picture is there whole."""
    bright = SimpleNamespace(shift=torch.zeros(1), moments=lambda x: (x, x), decoder=lambda x: x * 1.5)
    found = fidelity(cast(Autoencoder, bright), np.full((2, 3, 12, 12), 255, dtype=np.uint8))
    assert found.absolute_error.value == 0
    assert found.ssim.value == pytest.approx(1)


def test_fidelity_does_not_depend_on_the_batch(tiny: ImageModel, pictures: np.ndarray) -> None:
    one, many, again = (fidelity(tiny.autoencoder, pictures, batch=batch) for batch in (1, 32, 32))
    assert many == again
    for name, figure in many.figures().items():
        assert one.figures()[name] == pytest.approx(figure, rel=1e-5)
