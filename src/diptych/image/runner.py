"""The image runner: any number of pictures painted side by side, one call of the denoiser moving each by one step.

Jobs in one call may be at different noise levels, use different samplers and guidance scales, and ask for different
numbers of pictures: what is guided takes two rows a picture, what is not takes one.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from itertools import accumulate
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from diptych.core.checks import is_number, is_whole
from diptych.core.randomness import check_seed, normal
from diptych.image.condition import Condition, blend, join
from diptych.image.denoiser import Denoiser
from diptych.image.guidance import Guidance, check_sane, guide
from diptych.image.moves import Visit
from diptych.image.nodes import nodes_named, steps_of
from diptych.image.path import LARGEST_LOG_SNR, Node, Path
from diptych.image.photo import to_bytes, to_picture
from diptych.image.record import Decode, ImageResult, ImageStep
from diptych.image.samplers import VISITS, Sampler, sampler_named
from diptych.image.static import FRESH, check_turns, mixture, starting_noise
from diptych.image.words import Watch, Word, watching

MAX_STEPS, MAX_COUNT, MAX_SIDE = 1000, 64, 8192

Numbers = Callable[[tuple[int, int], float | None], Sequence[float]]


@dataclass(frozen=True)
class ImageRequest:
    """What to paint and how.

    Args:
        steps: intervals between noise levels; a sampler that looks again or between calls the network 2 steps - 1
            times.
        guidance: how far to follow the prompt.
        sampler: as `samplers.sampler_named` reads it; nodes: as `nodes.nodes_named` does, None for the sampler's own.
        seed: picture k of a request draws from (seed, first_sample + k) alone.
        count: pictures.
        height, width: pixels; None is the model's own size.
        noise: the starting noise (count, C, h, w), standard normal, instead of one drawn from the seed.
        picture: (1 or count, 3, H, W), -1..1, to begin from instead of static, with as much noise as the first node
            that is left has.
        strength: 0..1, the share of the steps, the last ones, that are taken from `picture`; at 1 nothing is left of it
            but what a mask keeps.
        mask: (1 or count, 1, H, W), 0..1: 1 where there is to be painted, 0 where `picture` stays as it is.
        turns: seeds and shares; the static is turned towards each seed in their order, by its share of an arc.
        to_prompt, to_seed, share: `share` of the way along an arc to this other prompt, this other seed.
        told_scale: the guidance that a network is told which imitates it; None is the usual one.
        words: keep which part of the picture each word was looked at from.
    """

    prompt: str
    negative_prompt: str = ""
    steps: int = 30
    guidance: Guidance = field(default_factory=Guidance)
    sampler: str = "dpm++-2m"
    nodes: str | None = None
    seed: int = 0
    count: int = 1
    height: int | None = None
    width: int | None = None
    noise: Tensor | None = None
    picture: Tensor | None = None
    strength: float = 1.0
    mask: Tensor | None = None
    turns: Sequence[tuple[int, float]] = ()
    to_prompt: str | None = None
    to_seed: int | None = None
    share: float = 0.0
    told_scale: float | None = None
    first_sample: int = 0
    words: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str) or not self.prompt.strip():
            raise ValueError("the prompt is empty: say what to paint")
        sizes = [(name, 1, MAX_SIDE) for name in ("height", "width") if getattr(self, name) is not None]
        for name, least, most in (
            ("steps", 1, MAX_STEPS),
            ("count", 1, MAX_COUNT),
            ("first_sample", 0, 2**32),
            *sizes,
        ):
            value = getattr(self, name)
            if not is_whole(value) or not least <= value <= most:
                raise ValueError(f"{name} must be a whole number from {least} to {most}, not {value!r}")
        for name, value in (("strength", self.strength), ("share", self.share)):
            if not is_number(value) or not 0 <= value <= 1:
                raise ValueError(f"{name} must be a number from 0 to 1, not {value!r}")
        if self.strength == 0:
            raise ValueError("strength 0 paints nothing: the picture would stay as it is")
        if self.picture is None and (self.strength != 1 or self.mask is not None):
            raise ValueError("strength and mask need a picture to begin from")
        if self.share and self.to_prompt is None and self.to_seed is None:
            raise ValueError(f"share {self.share:g} of the way to where? to_prompt or to_seed says it")
        if self.to_prompt is not None and (not isinstance(self.to_prompt, str) or not self.to_prompt.strip()):
            raise ValueError("to_prompt is empty: say what the picture turns into")
        check_turns(self.turns)
        sampler = sampler_named(self.sampler)
        nodes_named(self.nodes or sampler.nodes)
        check_seed(self.seed)
        if self.to_seed is not None:
            check_seed(self.to_seed)

    @property
    def guidance_scale(self) -> float:
        return self.guidance.scale


@dataclass
class ImageJob:
    """Pictures in progress."""

    request: ImageRequest
    sampler: Sampler
    route: list[Node]
    x: Tensor  # (count, C, h, w)
    prompt: Condition
    negative: Condition | None  # None where nothing is guided
    start: Tensor | None = None  # (1 or count, C, h, w): the picture to begin from
    mask: Tensor | None = None  # (1 or count, 1, h, w)
    visits: list[Visit] = field(default_factory=list)
    steps: list[ImageStep] = field(default_factory=list)
    running: Tensor | None = None  # guidance's momentum
    watch: Watch | None = None  # where the request asks for words
    is_done: bool = False
    is_ahead: ClassVar[bool] = False  # every step is a call

    @property
    def here(self) -> Node:
        return self.route[len(self.steps)]

    @property
    def is_guided_here(self) -> bool:
        return self.negative is not None and self.request.guidance.acts_at(self.here)


@dataclass(frozen=True)
class Kit:
    """What a runner paints with.

    Args:
        path: size (h, w) of the latents -> the noise path that they take.
        encode: prompts, and whether they are negative ones -> Condition.
        decode: latents (B, C, h, w) -> pictures (B, 3, H, W), -1..1; compress: the other way.
        channels: of latents; size: (h, w) of the model's own; downsampling: pixels for one of theirs, along a side.
        multiple: what h and w must be multiples of.
        numbers: (height, width) in pixels and the scale that is told, None for the usual one -> what the network wants
            to know of them.
        starts_whole: generation starts from noise of unit variance, as if there were no signal at the first node; the
            noise there is a little weaker.
        words: of a prompt, and where they stand in its condition.
        weaker: guides in the place of the unconditional estimate ("autoguidance"); it is given the prompt, and paints
            the same latents.
        name, facts: of the model, for the settings of results.
    """

    denoiser: Denoiser
    path: Callable[[tuple[int, int]], Path]
    encode: Callable[[list[str], bool], Condition]
    decode: Decode
    compress: Callable[[Tensor], Tensor]
    channels: int
    size: tuple[int, int]
    downsampling: int
    multiple: int = 1
    numbers: Numbers = lambda size, scale: ()
    starts_whole: bool = False
    words: Callable[[str], list[Word]] = lambda prompt: []
    weaker: "Kit | None" = None
    name: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    def latent_size(self, height: int | None, width: int | None) -> tuple[int, int]:
        """Of a picture of so many pixels. Raises: ValueError for a side that does not divide."""
        found = []
        for name, pixels, own in (("height", height, self.size[0]), ("width", width, self.size[1])):
            side, step = pixels or own * self.downsampling, self.downsampling * self.multiple
            if side % step:
                near = " or ".join(str(way) for way in (side // step * step, side // step * step + step) if way)
                raise ValueError(f"{name} must be a multiple of {step} for '{self.name}': {near}, not {side}")
            found.append(side // self.downsampling)
        return found[0], found[1]


class ImageRunner:
    """Paints with one kit."""

    def __init__(self, kit: Kit) -> None:
        self.kit = kit

    @torch.inference_mode()
    def admit(self, request: ImageRequest) -> ImageJob:
        """Raises: ValueError for a prompt that is too long, a size that the model cannot paint, or a starting noise,
        a starting picture or a mask of another shape."""
        kit, count = self.kit, request.count
        size = kit.latent_size(request.height, request.width)
        shape = (count, kit.channels, *size)
        pixels = (size[0] * kit.downsampling, size[1] * kit.downsampling)
        for name, given, one in (("picture", request.picture, (3, *pixels)), ("mask", request.mask, (1, *pixels))):
            wanted = {(rows, *one) for rows in (1, count)}
            if given is not None and (tuple(given.shape) not in wanted or not bool(torch.isfinite(given).all())):
                raise ValueError(f"{name} must be finite and of shape {max(wanted)}, not {tuple(given.shape)}")
        if request.noise is not None and (
            tuple(request.noise.shape) != shape or not bool(torch.isfinite(request.noise).all())
        ):
            raise ValueError(f"noise must be finite and of shape {shape}, not {tuple(request.noise.shape)}")
        sampler = sampler_named(request.sampler)
        path = kit.path(size)
        nodes = nodes_named(request.nodes or sampler.nodes)(path, request.steps)
        steps = len(nodes) - 1  # a list of nodes has a number of its own
        left = max(1, min(steps, int(steps * request.strength + 1e-9)))
        route = sampler.route(path, nodes[steps - left :])
        prompt = _told(kit, request, pixels)
        negative = None
        if request.guidance.ever and kit.weaker is not None:
            negative = _told(kit.weaker, request, pixels)
        elif request.guidance.ever:
            numbers = kit.numbers(pixels, request.told_scale)
            negative = kit.encode([request.negative_prompt], True).told(numbers).repeat(count)
        static = mixture(request.seed if request.noise is None else None, _turns(request))
        samples = range(request.first_sample, request.first_sample + count)
        noise = starting_noise(shape[1:], static, samples, request.noise).to(prompt.context.device)
        x = noise if kit.starts_whole and request.picture is None else route[0].sigma * noise
        # Between two prompts the words of the nearer one are watched.
        nearer = request.to_prompt if request.to_prompt is not None and request.share > 0.5 else request.prompt
        watch = Watch(kit.words(nearer)) if request.words else None
        job = ImageJob(request, sampler, route, x, prompt, negative, watch=watch)
        if request.picture is not None:
            self._begin_from(request.picture, job)
        return job

    def _begin_from(self, picture: Tensor, job: ImageJob) -> None:
        job.start = self.kit.compress(picture).to(job.x)
        kept = torch.full_like(job.start, float(job.request.strength < 1))
        if job.request.mask is not None:
            # A place of the latent is painted where any of its pixels is.
            job.mask = F.max_pool2d(job.request.mask.to(job.x), self.kit.downsampling)
            kept = torch.maximum(kept, 1 - job.mask)
        job.x = job.x + job.route[0].alpha * kept * job.start

    @torch.inference_mode()
    def advance(self, jobs: Sequence[ImageJob]) -> list[ImageStep]:
        """One call of the network (one more of the weaker, where there is one); each job moves to its next node. Steps
        in the order of the jobs.

        Raises:
            ValueError: an estimate that is no picture any more; the message names the step.
        """
        if not jobs:
            return []
        if any(job.is_done for job in jobs):
            raise ValueError("a job that is done cannot be advanced")
        kit, guided = self.kit, [job for job in jobs if job.is_guided_here]
        first = [(job, job.prompt, job.watch) for job in jobs]
        second = [(job, job.negative, None) for job in guided if job.negative is not None]
        if kit.weaker is None:
            found = _estimates(kit.denoiser, [*first, *second])
        else:
            found = [*_estimates(kit.denoiser, first), *_estimates(kit.weaker.denoiser, second)]
        others = dict(zip(map(id, guided), found[len(jobs) :], strict=True))
        return [self._step(job, found[place], others.get(id(job))) for place, job in enumerate(jobs)]

    def _step(self, job: ImageJob, conditional: Tensor, other: Tensor | None) -> ImageStep:
        request, index, here = job.request, len(job.steps), job.here
        total = len(job.route) - 1
        denoised, push = conditional, 0.0
        if other is not None:
            denoised, job.running = guide(conditional, other, request.guidance, job.running)
            push = float((denoised - conditional).square().mean().sqrt() / denoised.square().mean().sqrt())
        check_sane(denoised, conditional, index, total, request.guidance.scale)
        if job.mask is not None and job.start is not None:
            denoised = job.mask * denoised + (1 - job.mask) * job.start
        step = ImageStep(
            index=index,
            total=total,
            sigma=here.sigma,
            alpha=here.alpha,
            log_snr=max(here.log_snr, -LARGEST_LOG_SNR),  # finite, as JSON is
            noisy=job.x.cpu(),
            noise=((job.x - here.alpha * denoised) / here.sigma).cpu(),
            denoised=denoised.cpu(),
            guidance_push=push,
            decode=self.kit.decode,
            words=None if job.watch is None else job.watch.seen,
        )
        job.visits = [*job.visits[1 - VISITS :], Visit(here, job.x, denoised)]
        job.x = job.sampler.step(job.visits, job.route[index + 1 :], self._fresh(job, index))
        job.steps.append(step)
        job.is_done = index + 1 == total
        return step

    def _fresh(self, job: ImageJob, index: int) -> Tensor:
        """Noise for one step, the same for a picture alone and among others."""
        if not job.sampler.is_random:
            return torch.zeros(())
        first, seed = job.request.first_sample, job.request.seed
        samples = range(first, first + job.request.count)
        noise = torch.stack([normal(job.x.shape[1:], seed=seed, sample=k, step=index, stream=FRESH) for k in samples])
        return noise.to(job.x.device)

    @torch.inference_mode()
    def finish(self, job: ImageJob) -> ImageResult:
        """The pictures of a job: done, or as the last estimate has them when it was stopped early."""
        request, kit = job.request, self.kit
        latents = job.x if job.is_done or not job.visits else job.visits[-1].denoised
        painted = kit.decode(latents).cpu()
        if request.mask is not None and request.picture is not None:
            painted = request.mask * painted + (1 - request.mask) * request.picture
        images = [to_picture(picture) for picture in to_bytes(painted)]
        settings = {
            "prompt": request.prompt,
            "negative_prompt": request.negative_prompt,
            "seed": request.seed,
            "sample": request.first_sample,
            "count": request.count,
            "sampler": request.sampler,
            "nodes": request.nodes or job.sampler.nodes,
            "steps": steps_of(request.nodes or job.sampler.nodes, request.steps),
            "guidance_scale": request.guidance.scale if request.told_scale is None else request.told_scale,
            "height": images[0].height,
            "width": images[0].width,
            **_unusual(request),
            "has_own_noise": request.noise is not None,
            "is_whole": job.is_done,
            "model": kit.name,
            **kit.facts,
        }
        words = () if job.watch is None else tuple(word for word, _ in job.watch.words)
        return ImageResult(images, latents.cpu(), request.seed, settings, job.steps, kit.name, words)


def _turns(request: ImageRequest) -> list[tuple[int, float]]:
    return [*request.turns, *([] if request.to_seed is None else [(request.to_seed, request.share)])]


def _told(kit: Kit, request: ImageRequest, pixels: tuple[int, int]) -> Condition:
    """The prompt, or what lies between two, for each picture of a request."""
    prompt = kit.encode([request.prompt], False)
    if request.to_prompt is not None and request.share:
        prompt = blend(prompt, kit.encode([request.to_prompt], False), request.share)
    return prompt.told(kit.numbers(pixels, request.told_scale)).repeat(request.count)


def _estimates(denoiser: Denoiser, rows: Sequence[tuple[ImageJob, Condition, Watch | None]]) -> list[Tensor]:
    """What one call says of each job under its condition. Pictures of one size share a call, whatever their jobs."""
    found: dict[int, Tensor] = {}
    sizes: dict[tuple[int, ...], list[int]] = {}
    for place, (job, _, _) in enumerate(rows):
        sizes.setdefault(tuple(job.x.shape[1:]), []).append(place)
    for (_, height, width), places in sizes.items():
        x = torch.cat([rows[place][0].x for place in places])
        nodes = [node for place in places for node in [rows[place][0].here] * len(rows[place][0].x)]
        condition = join([rows[place][1] for place in places])
        counts = [len(rows[place][0].x) for place in places]
        ends = list(accumulate(counts))
        watches = [
            (slice(end - count, end), rows[place][2]) for place, count, end in zip(places, counts, ends, strict=True)
        ]
        with watching(denoiser.network, (height, width), condition.context.shape[1], watches):
            estimates = denoiser(x, nodes, condition)
        found |= dict(zip(places, estimates.split(counts), strict=True))
    return [found[place] for place in range(len(rows))]


def _unusual(request: ImageRequest) -> dict[str, Any]:
    """The settings that most requests leave as they are, where this one does not."""
    found: dict[str, Any] = {}
    for one in fields(Guidance):
        value = getattr(request.guidance, one.name)
        if one.name != "scale" and value != one.default:
            found[f"guidance_{one.name}"] = _in_json(value)
    if request.told_scale is not None and request.guidance.ever:
        found["true_guidance_scale"] = request.guidance.scale
    if request.picture is not None:
        found |= {"picture": True, "strength": request.strength}
    if request.mask is not None:
        found["mask"] = True
    if request.turns:
        found["turns"] = [list(turn) for turn in request.turns]
    if request.share:
        found |= {"to_prompt": request.to_prompt, "to_seed": request.to_seed, "share": request.share}
    return found


def _in_json(value: Any) -> Any:
    """JSON has no infinity: an interval without an upper bound ends in null."""
    if not isinstance(value, list | tuple):
        return value
    return [end if end is not None and math.isfinite(end) else None for end in value]
