"""What an image network's output means: the noise, the picture, v, the velocity, or Karras' mixture of them.

Each is a linear combination of the clean picture x_0 and the noise, so with x = alpha x_0 + sigma noise one gives the
other exactly. None of these formulas divides by alpha but the noise's, which at pure noise says nothing of the picture.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from diptych.core.choice import read_choice
from diptych.image.path import Kind, Path

Coefficients = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]


def _v_norm(alpha: Tensor, sigma: Tensor) -> Tensor:
    return alpha**2 + sigma**2


# What the network has to say is a x_0 + b noise. Functions of (alpha, sigma, sigma_data).
TARGETS: dict[str, Coefficients] = {
    # Ho et al. 2020, eq. 12
    "noise": lambda alpha, sigma, _: (alpha * 0, sigma * 0 + 1),
    "image": lambda alpha, sigma, _: (alpha * 0 + 1, sigma * 0),
    # v = alpha noise - sigma x_0 (Salimans & Ho 2022, app. D)
    "v": lambda alpha, sigma, _: (-sigma, alpha),
    # The direction of a straight line from the picture to the noise (Liu et al. 2023)
    "velocity": lambda alpha, sigma, _: (alpha * 0 - 1, sigma * 0 + 1),
    # Karras et al. 2022, table 1 and eq. 7: (x_0 - c_skip x) / c_out of the picture over alpha
    "edm": lambda alpha, sigma, data: (
        sigma / (data * (sigma**2 + (alpha * data) ** 2).sqrt()),
        -alpha * data / (sigma**2 + (alpha * data) ** 2).sqrt(),
    ),
}
# x_0 = a x + b output, from the two equations.
INVERSES: dict[str, Coefficients] = {
    "noise": lambda alpha, sigma, _: (1 / alpha, -sigma / alpha),
    "image": lambda alpha, sigma, _: (alpha * 0, sigma * 0 + 1),
    "v": lambda alpha, sigma, _: (alpha / _v_norm(alpha, sigma), -sigma / _v_norm(alpha, sigma)),
    "velocity": lambda alpha, sigma, _: (1 / (alpha + sigma), -sigma / (alpha + sigma)),
    "edm": lambda alpha, sigma, data: (
        alpha * data**2 / (sigma**2 + (alpha * data) ** 2),
        sigma * data / (sigma**2 + (alpha * data) ** 2).sqrt(),
    ),
}
DEFAULTS: dict[str, dict[str, float]] = {name: {"sigma_data": 0.5} if name == "edm" else {} for name in TARGETS}


@dataclass(frozen=True)
class Prediction:
    """The meaning of an output.

    Args:
        name: as `prediction_named` reads it.
        word: one of TARGETS.
        sigma_data: standard deviation of the data, which "edm" wants to know.
    """

    name: str
    word: str
    sigma_data: float = 0.5

    def check(self, path: Path) -> None:
        """Raises: ValueError where the path begins with pure noise and the noise is predicted."""
        if self.word == "noise" and path.node(path.start).alpha == 0:
            raise ValueError(
                f"the path '{path.name}' begins with pure noise, where predicting the noise says nothing of the "
                f"picture; predict {', '.join(word for word in TARGETS if word != 'noise')}"
            )

    def target(self, clean: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """What the network has to say; all of shapes that go together."""
        if self.word == "noise":
            return noise
        of_clean, of_noise = TARGETS[self.word](alpha, sigma, self.sigma_data)
        return of_clean * clean + of_noise * noise

    def denoised(self, x: Tensor, output: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The clean picture that an output means."""
        if self.word == "noise":  # in this order of operations: the bundled model's pictures are of it
            return (x - sigma * output) / alpha
        of_x, of_output = INVERSES[self.word](alpha, sigma, self.sigma_data)
        return of_x * x + of_output * output

    def error_scale(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The squared error of the clean picture for a squared error of 1 of the output."""
        return INVERSES[self.word](alpha, sigma, self.sigma_data)[1].square()

    def size(self, alpha: Tensor, sigma: Tensor, kind: Kind) -> Tensor:
        """What a noisy picture is divided by before the network sees it: its deviation, for data of sigma_data ("edm":
        Karras et al. 2022, c_in) or of 1; on the flow's path nothing is changed, as networks there are trained."""
        if self.word == "edm":
            return (sigma**2 + (alpha * self.sigma_data) ** 2).sqrt()
        return alpha * 0 + 1 if kind == "flow" else (alpha**2 + sigma**2).sqrt()


def prediction_named(name: str) -> Prediction:
    """A prediction by its name, "edm:sigma_data=1" with what is not the usual.

    Raises:
        ValueError: an unknown name or setting, or a value out of its range.
    """
    word, settings = read_choice("prediction", name, DEFAULTS)
    if not settings.get("sigma_data", 1.0) > 0:
        raise ValueError(f"sigma_data of prediction '{word}' must be above 0, not {settings['sigma_data']}")
    return Prediction(name, word, **settings)
