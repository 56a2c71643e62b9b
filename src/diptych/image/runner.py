"""The image runner: any number of pictures painted side by side, one call of the denoiser moving each by one step.

Jobs in one call may be at different noise levels, use different samplers and guidance scales, and ask for different
numbers of pictures: what is guided takes two rows a picture, what is not takes one.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from diptych.core.randomness import check_seed, normal
from diptych.core.trace import Trace, stack
from diptych.image.denoiser import Condition, Denoiser, join
from diptych.image.guidance import guide, needs_unconditional
from diptych.image.nodes import nodes_named
from diptych.image.path import Node, Path
from diptych.image.photo import to_bytes, to_picture
from diptych.image.samplers import Sampler, Visit, sampler_named

START, FRESH = 0, 1  # streams of randomness: the first noise, and what random samplers add
MAX_STEPS, MAX_COUNT = 1000, 64
VISITS_KEPT = 4


@dataclass(frozen=True)
class ImageRequest:
    """What to paint and how.

    Args:
        steps: intervals between noise levels; a sampler that visits nodes twice calls the network 2 steps - 1 times.
        guidance_scale: how far to go away from the negative prompt; 1 is no guidance, 0 is without the prompt.
        sampler: one of `samplers.SAMPLERS`; nodes: one of `nodes.NODES`, None for the sampler's own.
        seed: picture k of a request draws from (seed, first_sample + k) alone.
        count: pictures.
        noise: the starting noise (count, C, h, w), standard normal, instead of one drawn from the seed.
    """

    prompt: str
    negative_prompt: str = ""
    steps: int = 30
    guidance_scale: float = 5.0
    sampler: str = "dpm++-2m"
    nodes: str | None = None
    seed: int = 0
    count: int = 1
    noise: Tensor | None = None
    first_sample: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str) or not self.prompt.strip():
            raise ValueError("the prompt is empty: say what to paint")
        for name, least, most in (("steps", 1, MAX_STEPS), ("count", 1, MAX_COUNT), ("first_sample", 0, 2**32)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                raise ValueError(f"{name} must be a whole number from {least} to {most}, not {value!r}")
        scale = self.guidance_scale
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale) or scale < 0:
            raise ValueError(f"guidance_scale must be a finite number >= 0, not {scale!r}")
        sampler = sampler_named(self.sampler)
        nodes_named(self.nodes or sampler.nodes)
        check_seed(self.seed)


Decode = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ImageStep:
    """One call of the denoiser and the move that follows.

    Args:
        index, total: which call of how many, from 0.
        sigma, alpha, log_snr: the noise level of this call on the model's path.
        noisy: what the network saw; noise: what it predicts in it; denoised: its estimate of the clean picture, guided;
            each (count, C, h, w), float32, on the CPU.
        guidance_push: how far guidance moved the estimate, root mean square, relative to the estimate's own; 0 without.
    """

    index: int
    total: int
    sigma: float
    alpha: float
    log_snr: float
    noisy: Tensor
    noise: Tensor
    denoised: Tensor
    guidance_push: float
    decode: Decode

    @property
    def noise_share(self) -> float:
        """Share of the noisy picture's variance that is noise, 0..1."""
        return self.sigma**2 / (self.alpha**2 + self.sigma**2)

    def pixels(self, which: str = "denoised") -> Tensor:
        """What `noisy` or `denoised` looks like as pictures: (count, 3, H, W), uint8."""
        if which not in ("denoised", "noisy"):
            raise ValueError(f"a preview is of 'denoised' or of 'noisy', not '{which}'")
        scale = 1.0 if which == "denoised" else (self.alpha**2 + self.sigma**2) ** -0.5
        return to_bytes(self.decode(getattr(self, which) * scale))

    def preview(self, which: str = "denoised", sample: int = 0) -> Image.Image:
        """One picture of `pixels`."""
        return to_picture(self.pixels(which)[sample])


@dataclass(frozen=True)
class ImageResult:
    """Finished pictures.

    Args:
        latents: what the sampler ended with, (count, C, h, w), float32.
        settings: everything that makes them again; JSON values.
    """

    images: list[Image.Image]
    latents: Tensor
    seed: int
    settings: dict[str, Any]
    steps: list[ImageStep]
    model: str

    @property
    def image(self) -> Image.Image:
        return self.images[0]

    @cached_property
    def trace(self) -> Trace:
        """The recorded generation; its previews are decoded when it is first asked for."""
        arrays = {
            "noisy": stack([step.noisy for step in self.steps]),
            "denoised": stack([step.denoised for step in self.steps]),
            "preview": stack([step.pixels("denoised").cpu() for step in self.steps]),
            "preview_noisy": stack([step.pixels("noisy").cpu() for step in self.steps]),
        }
        names = ("index", "total", "sigma", "alpha", "log_snr", "noise_share", "guidance_push")
        facts = [{name: getattr(step, name) for name in names} for step in self.steps]
        return Trace("image", self.model, self.settings, arrays, facts)


@dataclass
class ImageJob:
    """Pictures in progress."""

    request: ImageRequest
    sampler: Sampler
    route: list[Node]
    x: Tensor
    condition: Condition  # the prompt's rows, then the negative prompt's where there is guidance
    visits: list[Visit] = field(default_factory=list)
    steps: list[ImageStep] = field(default_factory=list)
    is_done: bool = False
    is_ahead: ClassVar[bool] = False  # every step is a call

    @property
    def here(self) -> Node:
        return self.route[len(self.steps)]


class ImageRunner:
    """Paints with one denoiser.

    Args:
        encode: prompts -> Condition.
        decode: latents (B, C, h, w) -> pictures (B, 3, H, W), -1..1.
        shape: (C, h, w) of a latent picture.
        name, facts: of the model, for the settings of results.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        path: Path,
        encode: Callable[[list[str]], Condition],
        decode: Decode,
        shape: tuple[int, int, int],
        *,
        name: str = "",
        facts: dict[str, Any] | None = None,
    ) -> None:
        self.denoiser, self.path, self.encode, self.decode = denoiser, path, encode, decode
        self.shape, self.name, self.facts = shape, name, facts or {}

    @torch.inference_mode()
    def admit(self, request: ImageRequest) -> ImageJob:
        """Raises: ValueError for a prompt that is too long or a starting noise of another shape."""
        sampler = sampler_named(request.sampler)
        route = sampler.route(nodes_named(request.nodes or sampler.nodes)(self.path, request.steps))
        condition = self.encode([request.prompt]).repeat(request.count)
        if needs_unconditional(request.guidance_scale):
            condition = join([condition, self.encode([request.negative_prompt]).repeat(request.count)])
        shape = (request.count, *self.shape)
        if request.noise is None:
            samples = range(request.first_sample, request.first_sample + request.count)
            noise = torch.stack([normal(self.shape, seed=request.seed, sample=k, stream=START) for k in samples])
        elif tuple(request.noise.shape) == shape and bool(torch.isfinite(request.noise).all()):
            noise = request.noise.detach().float().cpu()
        else:
            raise ValueError(f"noise must be finite and of shape {shape}, not {tuple(request.noise.shape)}")
        x = route[0].sigma * noise.to(condition.context.device)
        return ImageJob(request, sampler, route, x, condition)

    @torch.inference_mode()
    def advance(self, jobs: Sequence[ImageJob]) -> list[ImageStep]:
        """One call of the network; each job moves to its next node. Steps in the order of the jobs."""
        if not jobs:
            return []
        if any(job.is_done for job in jobs):
            raise ValueError("a job that is done cannot be advanced")
        rows, nodes = [], []
        for job in jobs:
            times = len(job.condition) // job.request.count
            rows += [job.x] * times
            nodes += [job.here] * len(job.condition)
        estimates = self.denoiser(torch.cat(rows), nodes, join([job.condition for job in jobs]))
        parts = estimates.split([len(job.condition) for job in jobs])
        return [self._step(job, part) for job, part in zip(jobs, parts, strict=True)]

    def _step(self, job: ImageJob, estimates: Tensor) -> ImageStep:
        request, index, here = job.request, len(job.steps), job.here
        there = job.route[index + 1]
        conditional = estimates[: request.count]
        denoised, push = conditional, 0.0
        if needs_unconditional(request.guidance_scale):
            denoised = guide(conditional, estimates[request.count :], request.guidance_scale)
            push = float((denoised - conditional).square().mean().sqrt() / denoised.square().mean().sqrt())
        step = ImageStep(
            index=index,
            total=len(job.route) - 1,
            sigma=here.sigma,
            alpha=here.alpha,
            log_snr=here.log_snr,
            noisy=job.x.cpu(),
            noise=((job.x - here.alpha * denoised) / here.sigma).cpu(),
            denoised=denoised.cpu(),
            guidance_push=push,
            decode=self.decode,
        )
        job.visits = [*job.visits[1 - VISITS_KEPT :], Visit(here, job.x, denoised)]
        job.x = job.sampler.update(job.visits, there, self._fresh(job, index))
        job.steps.append(step)
        job.is_done = index + 2 == len(job.route)
        return step

    def _fresh(self, job: ImageJob, index: int) -> Tensor:
        """Noise for one step, the same for a picture alone and among others."""
        if not job.sampler.is_random:
            return torch.zeros(())
        first, seed = job.request.first_sample, job.request.seed
        samples = range(first, first + job.request.count)
        noise = torch.stack([normal(self.shape, seed=seed, sample=k, step=index, stream=FRESH) for k in samples])
        return noise.to(job.x.device)

    @torch.inference_mode()
    def finish(self, job: ImageJob) -> ImageResult:
        """The pictures of a job: done, or as the last estimate has them when it was stopped early."""
        request = job.request
        latents = job.x if job.is_done or not job.visits else job.visits[-1].denoised
        images = [to_picture(picture) for picture in to_bytes(self.decode(latents)).cpu()]
        settings = {
            "prompt": request.prompt,
            "negative_prompt": request.negative_prompt,
            "seed": request.seed,
            "sample": request.first_sample,
            "count": request.count,
            "sampler": request.sampler,
            "nodes": request.nodes or job.sampler.nodes,
            "steps": request.steps,
            "guidance_scale": request.guidance_scale,
            "has_own_noise": request.noise is not None,
            "is_whole": job.is_done,
            "model": self.name,
            **self.facts,
        }
        return ImageResult(images, latents.cpu(), request.seed, settings, job.steps, self.name)
