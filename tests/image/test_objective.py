"""What the denoiser's training minimises: targets, weights and times against their papers' formulas."""

import math

import pytest
import torch
from torch import Tensor, nn

from diptych.image.condition import Condition
from diptych.image.denoiser import Denoiser, told_time
from diptych.image.objective import (
    TIMES,
    WEIGHTINGS,
    denoising_objective,
    times_named,
    weighting_named,
    weights_of,
)
from diptych.image.path import path_named
from diptych.image.prediction import TARGETS, prediction_named

PATHS = [
    "ddpm-linear",
    "ddpm-scaled-linear:zero_snr=true",
    "ddpm-cosine",
    "variance-exploding",
    "rectified-flow",
    "rectified-flow:shift=3",
]
NOTHING = Condition(torch.zeros(64, 1, 1), torch.ones(64, 1, dtype=torch.bool))


class Says(nn.Module):
    """A network that says what it is told to, and keeps what it was asked."""

    def __init__(self, answer: Tensor, clock: str = "log-snr") -> None:
        super().__init__()
        self.answer, self.clock = nn.Parameter(answer), clock

    def forward(self, x: Tensor, time: Tensor, context: Tensor, mask: Tensor, pooled: None, numbers: None) -> Tensor:
        self.seen, self.time = x, time
        return self.answer


def draw(path: str, count: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures, noise and times, from nearly clean to the noisiest that there is."""
    random, way = torch.Generator().manual_seed(0), path_named(path)
    clean, noise = torch.randn(count, 1, 4, 4, generator=random) / 2, torch.randn(count, 1, 4, 4, generator=random)
    return clean, noise, way.end + (1 - way.end) * torch.linspace(0, 1, count, dtype=torch.float64)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("prediction", [*TARGETS, "edm:sigma_data=1"])
def test_a_prediction_and_the_picture_give_each_other_exactly(path: str, prediction: str) -> None:
    """Both ways within 1e-5 at all noise levels, in float64 as in what is trained; where the noise is predicted, as
    far as alpha allows, and never at pure noise."""
    way, meaning = path_named(path), prediction_named(prediction)
    clean, noise, times = draw(path)
    alpha, sigma = (values.double()[:, None, None, None] for values in way.coefficients(times))
    x = alpha * clean + sigma * noise
    output = meaning.target(clean, noise, alpha, sigma)
    there = (alpha > 0).flatten() if meaning.word == "noise" else torch.ones(len(x), dtype=torch.bool)
    found = meaning.denoised(x, output, alpha, sigma)[there]
    assert torch.allclose(found, clean.double()[there], atol=1e-5)
    back = meaning.target(found, ((x - alpha * clean) / sigma)[there], alpha[there], sigma[there])
    assert torch.allclose(back, output[there].double(), atol=1e-5)
    assert torch.isfinite(output).all()


def test_edm_is_the_preconditioning_of_its_paper() -> None:
    """Karras et al. 2022, table 1: c_skip, c_out, c_in and c_noise at sigma 3, sigma_data 0.5."""
    sigma, data = 3.0, 0.5
    path, edm = path_named("variance-exploding"), prediction_named("edm")
    node = path.at_ratio(sigma)
    x, answer = torch.randn(1, 1, 2, 2), torch.randn(1, 1, 2, 2)
    network = Says(answer, "edm")
    denoised = Denoiser(network, "edm", path)(x, [node], NOTHING[slice(0, 1)])
    c_skip, c_out = data**2 / (sigma**2 + data**2), sigma * data / math.sqrt(sigma**2 + data**2)
    assert torch.allclose(denoised, c_skip * x + c_out * answer, atol=1e-6)
    assert torch.allclose(network.seen, x / math.sqrt(sigma**2 + data**2), atol=1e-6)
    assert network.time.item() == pytest.approx(math.log(sigma) / 4, rel=1e-6)
    assert edm.name == "edm"


def test_clocks_tell_the_time_in_their_unit_also_of_pure_noise() -> None:
    path = path_named("rectified-flow:shift=3")
    for node in (path.node(0.5), path.node(1.0)):
        numbers = (torch.tensor([value]) for value in (node.log_snr, node.sigma, node.time))
        told = told_time("flow", *numbers, path.steps)
        assert told.item() == pytest.approx(1000 * node.sigma)
    trained = path_named("ddpm-linear").at_timestep(37)
    numbers = [torch.tensor([value]) for value in (trained.log_snr, trained.sigma, trained.time)]
    assert told_time("timestep", *numbers, 1000).item() == pytest.approx(37, abs=1e-3)
    nothing = torch.tensor([-math.inf]), torch.ones(1), torch.ones(1)
    for clock in ("log-snr", "edm", "timestep", "flow"):
        assert torch.isfinite(told_time(clock, *nothing, 1000)).all()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("prediction", TARGETS)
def test_the_objective_is_zero_for_who_knows_and_one_for_silence_about_the_noise(path: str, prediction: str) -> None:
    """The unweighted figure is of the noise, whatever is predicted: 0 when it is known, and 1 on the whole for a
    network that says nothing where the noise is what it should say."""
    way, meaning = path_named(path), prediction_named(prediction)
    clean, noise, times = draw(path)
    alpha, sigma = (values[:, None, None, None] for values in way.coefficients(times))
    knows = Says(meaning.target(clean, noise, alpha, sigma))
    loss, each = denoising_objective(knows, meaning, way, clean, noise, times, NOTHING, weighting="v")
    assert loss.item() == 0
    assert each.tolist() == [0] * 64
    # An answer that is off by a number: the noise that it implies is off by what its picture is off.
    answer = knows.answer.detach() + 0.1
    _, each = denoising_objective(Says(answer), meaning, way, clean, noise, times, NOTHING)
    x = alpha * clean + sigma * noise
    implied = (x - alpha * meaning.denoised(x, answer, alpha, sigma)) / sigma
    there = (alpha > 0).flatten()
    wanted = (implied - noise).square().mean((1, 2, 3))
    assert torch.allclose(each[there], wanted[there], rtol=2e-2, atol=1e-5)
    assert torch.isfinite(each[there]).all()
    if prediction == "noise":
        silent, _ = denoising_objective(Says(torch.zeros_like(answer)), meaning, way, clean, noise, times, NOTHING)
        assert silent.item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("prediction", ["noise", "image", "v", "velocity", "edm"])
def test_weights_are_those_of_their_papers_in_terms_of_what_is_predicted(prediction: str) -> None:
    """Hang et al. 2023, sec. 3.3: min(SNR, g) / SNR for the noise, min(SNR, g) for the picture, min(SNR, g) / (SNR + 1)
    for v; Crowson et al. 2024 without the corner; Karras et al. 2022: 1 for its own network; velocity: Esser et al.
    2024, eq. 11, where the picture's error is sigma^2 times the velocity's."""
    path = path_named("rectified-flow" if prediction == "velocity" else "ddpm-linear")
    times = torch.linspace(0.05, 0.95, 7, dtype=torch.float64)
    alpha, sigma = path.coefficients(times)
    snr = (alpha / sigma) ** 2
    factor = {
        "noise": 1 / snr,
        "image": torch.ones_like(snr),
        "v": 1 / (snr + 1),
        "velocity": sigma**2,
        "edm": 0.25 / (1 + 0.25 * snr),
    }[prediction]
    formulas = {
        "min-snr:gamma=3": snr.clamp(max=3),
        "soft-min-snr": 4 * snr / (snr + 4),
        "v": snr + 1,
        "edm": snr + 4,
    }
    for weighting, of_picture in formulas.items():
        wanted = of_picture * factor
        if prediction == "noise":
            wanted = wanted.clamp(max=400)
        found = weights_of(weighting, prediction_named(prediction), alpha, sigma)
        assert torch.allclose(found, wanted, rtol=1e-3), weighting
    assert torch.equal(weights_of("simple", prediction_named(prediction), alpha, sigma), torch.ones(7))
    if prediction == "edm":
        assert torch.allclose(weights_of("edm", prediction_named("edm"), alpha, sigma), torch.ones(7), rtol=1e-4)


def test_times_are_distributed_as_their_papers_say() -> None:
    """Quantiles against the standard normal's: the median, and the part below one deviation (0.8413)."""
    parts = (torch.arange(20_001, dtype=torch.float64) + 0.5) / 20_001
    flow, exploding = path_named("rectified-flow"), path_named("variance-exploding")
    logits = torch.logit(times_named("logit-normal:mean=0.5,deviation=2")(flow, parts))
    assert logits.median().item() == pytest.approx(0.5, abs=1e-3)
    assert (logits < 2.5).double().mean().item() == pytest.approx(0.8413, abs=1e-3)
    logarithms = exploding.coefficients(times_named("log-normal")(exploding, parts))[1].log()
    assert logarithms.median().item() == pytest.approx(-1.2, abs=1e-3)
    assert logarithms.std().item() == pytest.approx(1.2, abs=5e-3)
    uniform = times_named("uniform")(path_named("ddpm-linear"), parts)
    assert (uniform.min().item(), uniform.max().item()) == pytest.approx((0.001, 1), abs=1e-3)
    for name in TIMES:
        ends = times_named(name)(flow, torch.tensor([0.0, 1.0], dtype=torch.float64))
        assert ends.min() >= flow.end
        assert ends.max() <= 1
        assert torch.isfinite(torch.stack(flow.coefficients(ends))).all()


@pytest.mark.parametrize("path", ["rectified-flow", "ddpm-linear:zero_snr=true"])
def test_predicting_noise_is_refused_where_a_path_begins_with_nothing_else(path: str) -> None:
    with pytest.raises(ValueError, match="begins with pure noise, where predicting the noise says nothing"):
        Denoiser(Says(torch.zeros(1)), "noise", path_named(path))


@pytest.mark.parametrize(
    ("read", "name", "message"),
    [
        (prediction_named, "epsilon", "unknown prediction 'epsilon'; known: noise, image, v, velocity, edm"),
        (prediction_named, "edm:sigma_data=0", "sigma_data of prediction 'edm' must be above 0"),
        (weighting_named, "min-snr:gamma=-1", "gamma of weighting 'min-snr' must be above 0, not -1"),
        (weighting_named, "snr", "unknown weighting 'snr'"),
        (times_named, "logit-normal:deviation=0", "deviation of times 'logit-normal' must be above 0, not 0"),
        (times_named, "normal", "unknown distribution of times 'normal'"),
    ],
)
def test_names_that_are_not_known_are_refused(read: object, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(name)  # type: ignore[operator]
    assert set(WEIGHTINGS) == {"simple", "v", "min-snr", "soft-min-snr", "edm"}
