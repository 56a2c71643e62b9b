"""One loop for one picture and for many: what a request gives must not depend on its company."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from tests.image.conftest import make_tiny_model
from torch import Tensor

from diptych.image.guidance import Guidance
from diptych.image.model import ImageModel
from diptych.image.record import ImageResult
from diptych.image.runner import ImageRequest
from diptych.image.samplers import SAMPLERS


def pixels(result: ImageResult) -> np.ndarray:
    return np.stack([np.asarray(image, dtype=np.int16) for image in result.images])


def paint(model: ImageModel, requests: list[ImageRequest], delay: int = 0) -> list[ImageResult]:
    """All requests through one runner; request k enters after `k * delay` calls."""
    runner = model.runner()
    waiting = list(enumerate(requests))
    jobs: dict[int, Any] = {}
    results: dict[int, ImageResult] = {}
    calls = 0
    while waiting or jobs:
        while waiting and calls >= waiting[0][0] * delay:
            number, request = waiting.pop(0)
            jobs[number] = runner.admit(request)
        runner.advance(list(jobs.values()))
        calls += 1
        for number in [number for number, job in jobs.items() if job.is_done]:
            results[number] = runner.finish(jobs.pop(number))
    return [results[number] for number in range(len(requests))]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_same_picture_alone_and_among_five(tiny: ImageModel, sampler: str) -> None:
    """Other prompts, samplers, guidance scales and numbers of steps, entering at other times: within 2 of 255."""
    wanted = ImageRequest("a cat on a beach", steps=6, sampler=sampler, seed=5)
    company = [
        ImageRequest("a dog", steps=4, sampler="heun", guidance=Guidance(1.0), seed=1),
        ImageRequest("a dog in a forest at night", steps=8, sampler="ddpm", guidance=Guidance(7.5), seed=2, count=2),
        wanted,
        ImageRequest("a beach", steps=3, sampler="dpm++-2m", nodes="uniform", negative_prompt="a dog", seed=3),
        ImageRequest("night", steps=5, sampler="euler", seed=4),
    ]
    alone = paint(tiny, [wanted])[0]
    for delay in (0, 2):
        among = paint(tiny, company, delay)[2]
        assert np.abs(pixels(alone) - pixels(among)).max() <= 2


def test_each_of_many_pictures_is_the_picture_of_its_number(tiny: ImageModel) -> None:
    together = tiny.generate("a cat", steps=4, seed=9, count=4, sampler="euler-ancestral").result()
    third = tiny.generate("a cat", steps=4, seed=9, first_sample=2, sampler="euler-ancestral").result()
    assert len(together.images) == 4
    assert np.abs(pixels(together)[2] - pixels(third)[0]).max() <= 2
    assert np.abs(pixels(together)[0] - pixels(together)[1]).max() > 2


def test_guidance_scale_one_is_no_guidance_exactly(tiny: ImageModel) -> None:
    """The negative prompt changes nothing then, and the network is asked once a picture, not twice."""
    plain = tiny.generate("a cat", steps=4, seed=1, guidance_scale=1).result()
    negative = tiny.generate("a cat", steps=4, seed=1, guidance_scale=1, negative_prompt="a dog").result()
    assert torch.equal(plain.latents, negative.latents)
    assert all(step.guidance_push == 0 for step in plain.steps)
    rows: list[int] = []
    hook = tiny.network.register_forward_hook(lambda module, inputs, output: rows.append(len(inputs[0])))
    tiny.generate("a cat", steps=2, seed=1, guidance_scale=1, count=3).result()
    tiny.generate("a cat", steps=2, seed=1, guidance_scale=2, count=3).result()
    hook.remove()
    assert rows == [3, 3, 6, 6]


@pytest.mark.parametrize("scale", [0, 3.5])
def test_the_guidance_that_a_network_is_told_is_the_one_that_is_kept(scale: float) -> None:
    """Also 0, which is a scale like any other; true guidance stands beside it, where there is any."""
    model = make_tiny_model()
    told: list[float | None] = []
    model.imitates_guidance, model.numbers = True, lambda size, scale: told.append(scale) or ()
    plain = model.generate("a cat", steps=1, seed=1, guidance_scale=scale).result().settings
    guided = model.generate("a cat", steps=1, seed=1, guidance_scale=scale, true_guidance_scale=0).result().settings
    assert plain["guidance_scale"] == guided["guidance_scale"] == scale
    assert told == [scale] * 3  # with the prompt, and with the negative one where that is asked
    assert "true_guidance_scale" not in plain
    assert guided["true_guidance_scale"] == 0


@pytest.mark.parametrize(
    ("setting", "value", "kept"),
    [
        ("rescale", 0.5, 0.5),
        ("interval", (0.3, None), [0.3, None]),
        ("threshold", 0.9, 0.9),
        ("parallel", 0.0, 0.0),
        ("limit", 2.0, 2.0),
        ("momentum", -0.5, -0.5),
    ],
)
def test_what_is_unusual_about_guidance_is_kept(tiny: ImageModel, setting: str, value: Any, kept: Any) -> None:
    usual = tiny.generate("a cat", steps=1, seed=1).result().settings
    found = tiny.generate("a cat", steps=1, seed=1, **{f"guidance_{setting}": value}).result().settings
    assert found == usual | {f"guidance_{setting}": kept}


def test_guidance_and_negative_prompt_follow_their_equation(tiny: ImageModel) -> None:
    """Ho & Salimans 2022, eq. 6, on the first step, from three separate one-sided calls."""

    def first(prompt: str, **settings: Any) -> Tensor:
        denoised: Tensor = next(iter(tiny.generate(prompt, steps=3, seed=2, **settings))).denoised
        return denoised

    cat, dog = first("a cat", guidance_scale=1), first("a dog", guidance_scale=1)
    guided = first("a cat", guidance_scale=3.5, negative_prompt="a dog")
    assert torch.allclose(guided, dog + 3.5 * (cat - dog), atol=1e-3)


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(tiny: ImageModel) -> None:
    one, two, other = (tiny.generate("a cat", steps=3, seed=seed, sampler="ddpm").result() for seed in (4, 4, 5))
    assert torch.equal(one.latents, two.latents)
    assert not torch.equal(one.latents, other.latents)


def test_a_given_starting_noise_is_used(tiny: ImageModel) -> None:
    noise = torch.randn(1, *tiny.latent_shape, generator=torch.Generator().manual_seed(0))
    first = next(iter(tiny.generate("a cat", steps=3, seed=1, noise=noise)))
    assert torch.allclose(first.noisy, first.sigma * noise)
    with pytest.raises(ValueError, match="noise must be finite and of shape"):
        tiny.generate("a cat", noise=noise[:, :1])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_step_adds_up(tiny: ImageModel, sampler: str) -> None:
    """noisy = alpha denoised + sigma noise in every step, and the levels fall."""
    generation = tiny.generate("a dog", steps=5, seed=3, sampler=sampler)
    steps = list(generation)
    calls = {"once": 5, "first-twice": 6}.get(SAMPLERS[sampler].looks, 9)
    assert [step.index for step in steps] == list(range(calls))
    assert all(step.total == calls for step in steps)
    for step in steps:
        assert torch.allclose(step.noisy, step.alpha * step.denoised + step.sigma * step.noise, atol=1e-4)
        assert step.preview().size == step.preview("noisy").size == (64, 64)
    shares = [step.noise_share for step in steps]
    assert all(before >= after - 1e-12 for before, after in itertools.pairwise(shares))
    assert shares[0] > 0.99


def test_the_trace_holds_every_step(tiny: ImageModel) -> None:
    result = tiny.generate("a cat", steps=4, seed=1, count=2).result()
    trace = result.trace
    assert trace.panel == "image"
    assert trace.settings["prompt"] == "a cat"
    assert trace.arrays["noisy"].shape == (4, 2, *tiny.latent_shape)
    assert trace.arrays["preview"].shape == (4, 2, 3, 64, 64)
    assert torch.equal(trace.arrays["denoised"][3], result.steps[3].denoised)
    assert [fact["index"] for fact in trace.facts] == [0, 1, 2, 3]


def test_a_generation_stopped_early_shows_the_last_estimate(tiny: ImageModel) -> None:
    generation = tiny.generate("a cat", steps=10, seed=1)
    steps = list(itertools.islice(generation, 3))
    result = generation.stop()
    assert torch.equal(result.latents, steps[-1].denoised)
    assert result.settings["is_whole"] is False


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps must be a whole number from 1 to 1000, not 0"),
        ({"steps": 2.5}, "steps must be a whole number"),
        ({"count": 0}, "count must be a whole number from 1 to 64, not 0"),
        ({"guidance_scale": -1}, "guidance_scale must be a finite number >= 0, not -1"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be a finite number >= 0, not nan"),
        ({"sampler": "dpm"}, "unknown sampler 'dpm'"),
        ({"nodes": "line"}, "unknown node rule 'line'"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"prompt": "  "}, "the prompt is empty"),
        ({"prompt": "a cat " * 30}, "the prompt is too long"),
        ({"negative_prompt": "a cat " * 30}, "the prompt is too long"),
    ],
)
def test_wrong_settings_are_refused_before_any_work(tiny: ImageModel, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny.generate(**{"prompt": "a cat", **settings})


def test_a_list_of_nodes_is_painted_at_and_counted(tiny: ImageModel) -> None:
    """Whatever number of steps is asked for; and its facts paint it again."""
    result = tiny.generate("a cat", nodes="sigmas:18,4,1,0.2", seed=1).result()
    assert [step.sigma / step.alpha for step in result.steps] == pytest.approx([18, 4, 1, 0.2])
    assert (result.settings["steps"], result.settings["nodes"]) == (4, "sigmas:18,4,1,0.2")
    again = tiny.generate("a cat", steps=4, nodes="sigmas:18,4,1,0.2", seed=1).result()
    assert torch.equal(again.latents, result.latents)


def test_a_name_of_another_program_paints_what_it_means(tiny: ImageModel) -> None:
    theirs = tiny.generate("a cat", steps=4, sampler="DPM++ 2M Exponential", seed=1).result()
    ours = tiny.generate("a cat", steps=4, sampler="dpm++-2m", nodes="exponential", seed=1).result()
    assert torch.equal(theirs.latents, ours.latents)
