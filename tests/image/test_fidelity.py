"""PSNR and SSIM: against scikit-image, and where the answer is known in closed form."""

import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio
from skimage.metrics import structural_similarity as reference
from torch import Tensor

from diptych.image.fidelity import K1, LUMINANCE, RANGE, peak_signal_to_noise, structural_similarity


@pytest.fixture
def pairs() -> tuple[Tensor, Tensor]:
    """Smooth random pictures (4, 3, 24, 33) in -1..1, and the same with more and more noise."""
    random = torch.Generator().manual_seed(0)
    pictures = torch.rand(4, 3, 3, 4, generator=random) * 2 - 1
    pictures = torch.nn.functional.interpolate(pictures, (24, 33), mode="bicubic").clamp(-1, 1)
    noise = torch.randn(pictures.shape, generator=random) * torch.tensor([0.01, 0.05, 0.2, 0.8])[:, None, None, None]
    return (pictures + noise).clamp(-1, 1), pictures


def test_ssim_is_that_of_scikit_image(pairs: tuple[Tensor, Tensor]) -> None:
    """With the settings of Wang et al. 2004, of which theirs says that they match the paper's own program."""
    weights = torch.tensor(LUMINANCE, dtype=torch.float64)[:, None, None]
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": RANGE}
    for found, painted, picture in zip(structural_similarity(*pairs), *pairs, strict=True):
        grey = [((one.double() + 1) * weights).sum(0).numpy() for one in (painted, picture)]
        assert float(found) == pytest.approx(reference(*grey, **settings), abs=1e-6)


def test_psnr_is_that_of_scikit_image(pairs: tuple[Tensor, Tensor]) -> None:
    for found, painted, picture in zip(peak_signal_to_noise(*pairs), *pairs, strict=True):
        theirs = peak_signal_noise_ratio(picture.numpy(), painted.numpy(), data_range=RANGE)
        assert float(found) == pytest.approx(theirs, abs=1e-4)


def test_ssim_of_two_greys_is_their_luminance_term() -> None:
    """No structure, no contrast: (2 a b + C1) / (a^2 + b^2 + C1), with levels from 0 (Wang et al. 2004, eq. 6)."""
    a, b, c1 = 0.3 + 1, -0.4 + 1, (K1 * RANGE) ** 2
    found = structural_similarity(torch.full((1, 3, 16, 16), 0.3), torch.full((1, 3, 16, 16), -0.4))
    assert float(found) == pytest.approx((2 * a * b + c1) / (a * a + b * b + c1), abs=1e-6)


def test_ssim_is_symmetric_and_one_for_the_same_picture(pairs: tuple[Tensor, Tensor]) -> None:
    painted, pictures = pairs
    torch.testing.assert_close(structural_similarity(painted, pictures), structural_similarity(pictures, painted))
    torch.testing.assert_close(structural_similarity(pictures, pictures), torch.ones(4))
    worse = structural_similarity(painted, pictures)
    assert worse.tolist() == sorted(worse.tolist(), reverse=True)


def test_the_same_picture_has_the_psnr_of_rounding(pairs: tuple[Tensor, Tensor]) -> None:
    """Finite: an error spread evenly over one of 255 steps has a mean square of 1/12 of a step's square."""
    best = peak_signal_to_noise(pairs[1], pairs[1])
    assert best.tolist() == pytest.approx([10 * torch.log10(torch.tensor(12 * 255.0**2)).item()] * 4)


def test_a_picture_smaller_than_the_window_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 11 pixels a side, not 20 x 10"):
        structural_similarity(torch.zeros(1, 3, 10, 20), torch.zeros(1, 3, 10, 20))
