"""Does a painter paint what it is told? Held-out scenes are asked for, and the judge counts what is there.

Every prompt names a combination of animal, worn thing, place and time that no training picture showed. A named
attribute counts as found when the judge reads it off the painted picture.
"""

import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from PIL import Image, ImageDraw, ImageFont

from diptych.core.files import atomic_file, output_path
from diptych.core.share import Share
from diptych.data import scenes
from diptych.image.guidance import Guidance
from diptych.image.judge import Judge
from diptych.image.runner import ImageRequest, ImageRunner

Watcher = Callable[[float, int], None]  # prompts painted, the last ones in part, and prompts in all


class Painter(Protocol):
    """As much of `ImageModel` as is needed here."""

    @property
    def name(self) -> str: ...
    def runner(self) -> ImageRunner: ...


@dataclass(frozen=True)
class Painted:
    """One picture: what its prompt named, what the judge says of those attributes."""

    prompt: str
    seed: int
    sample: int
    named: dict[str, str]
    seen: dict[str, str]
    image: Image.Image

    @property
    def misses(self) -> dict[str, str]:
        """Attribute -> what is there instead."""
        return {name: self.seen[name] for name, value in self.named.items() if self.seen[name] != value}

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("prompt", "seed", "sample", "named", "seen", "misses")}


@dataclass(frozen=True)
class SceneReport:
    model: str
    settings: dict[str, Any]
    painted: list[Painted]

    @property
    def total(self) -> Share:
        return self._share(list(scenes.ATTRIBUTES))

    @property
    def by_attribute(self) -> dict[str, Share]:
        return {
            name: self._share([name])
            for name in scenes.ATTRIBUTES
            if any(name in picture.named for picture in self.painted)
        }

    def _share(self, names: list[str]) -> Share:
        asked = [name in picture.misses for picture in self.painted for name in names if name in picture.named]
        return Share(len(asked) - sum(asked), len(asked))

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "on": "scenes",
            "settings": self.settings,
            "total": self.total.to_dict(),
            "by_attribute": {name: share.to_dict() for name, share in self.by_attribute.items()},
            "pictures": [picture.to_dict() for picture in self.painted],
        }


@lru_cache(maxsize=4)
def held_out_prompts(count: int = 20) -> tuple[str, ...]:
    """`count` prompts for held-out scenes, always the same, spread evenly over the values of every attribute.

    The first is "a cat wearing sunglasses on a beach at sunset". Every second one names the style; one in ten at most
    wears nothing.
    """
    parts = ("animal", "worn", "place", "time")
    left = [scene for scene in scenes.held_out_scenes() if scene.style == "flat"]
    if not 1 <= count <= len(left):
        raise ValueError(f"the number of prompts must be from 1 to {len(left)}, not {count}")
    used: Counter[tuple[str, str]] = Counter()

    def crowd(scene: scenes.Scene) -> tuple[bool, bool, int, float]:
        """What speaks against a scene: lowest is taken next."""
        is_first = (scene.animal, scene.worn, scene.place, scene.time) == ("cat", "sunglasses", "beach", "sunset")
        is_bare = scene.worn == "nothing" and used["worn", "nothing"] >= max(1, count // 10)
        shares = [used[part, getattr(scene, part)] * len(scenes.ATTRIBUTES[part]) for part in parts]
        return not is_first, is_bare, max(shares), sum(shares)

    prompts = []
    for number in range(count):
        scene = min(left, key=crowd)
        left.remove(scene)
        used.update((part, getattr(scene, part)) for part in parts)
        style = scenes.STYLES[number // 2 % len(scenes.STYLES)]
        caption = scenes.Scene(**{**asdict(scene), "style": style}).caption()
        prompts.append(caption if number % 2 else caption.replace(f"a {style} ", "a ", 1))
    return tuple(prompts)


def evaluate_scenes(
    model: Painter,
    judge: Judge,
    *,
    prompts: Sequence[str] | None = None,
    pictures_each: int = 2,
    seed: int = 1,
    steps: int = 30,
    guidance_scale: float = 5.0,
    sampler: str = "dpm++-2m",
    together: int = 4,
    watch: Watcher | None = None,
) -> SceneReport:
    """Paint every prompt `pictures_each` times and count the named attributes that the judge finds.

    Args:
        prompts: None takes the 20 of `held_out_prompts`. Prompt number k is painted with seed `seed` + k.
        together: prompts painted in one batch; it changes the speed and nothing else.

    Raises:
        ValueError: for a setting out of its range, or a prompt that names no attribute.
    """
    prompts = held_out_prompts() if prompts is None else tuple(prompts)
    for prompt in prompts:
        if not scenes.parse(prompt):
            raise ValueError(f"the prompt '{prompt}' names nothing that the judge knows")
    settings: dict[str, Any] = {"steps": steps, "guidance_scale": guidance_scale, "sampler": sampler}

    def one(prompt: str, number: int) -> ImageRequest:
        return ImageRequest(
            prompt,
            steps=steps,
            guidance=Guidance(guidance_scale),
            sampler=sampler,
            seed=seed + number,
            count=pictures_each,
        )

    requests = [one(prompt, number) for number, prompt in enumerate(prompts)]
    painted: list[Painted] = []
    for request, images in zip(requests, _paint(model.runner(), requests, together, watch), strict=True):
        named = scenes.parse(request.prompt)
        for sample, (image, words) in enumerate(zip(images, judge.read_pictures(images), strict=True)):
            seen = {name: words[name] for name in named}
            painted.append(Painted(request.prompt, request.seed, sample, named, seen, image))
    return SceneReport(model.name, {"seed": seed, "count": pictures_each, **settings}, painted)


def _paint(
    runner: ImageRunner, requests: Sequence[ImageRequest], together: int, watch: Watcher | None
) -> list[list[Image.Image]]:
    """The pictures of each request, `together` requests at a time over the one runner."""
    pictures: list[list[Image.Image]] = []
    for start in range(0, len(requests), together):
        jobs = [runner.admit(request) for request in requests[start : start + together]]
        while running := [job for job in jobs if not job.is_done]:
            made = runner.advance(running)
            if watch:
                parts = sum((step.index + 1) / step.total for step in made)
                watch(start + len(jobs) - len(running) + parts, len(requests))
        pictures += [runner.finish(job).images for job in jobs]
    return pictures


def save_sheet(report: SceneReport, path: str | Path, columns: int = 8) -> None:
    """All that was painted on one PNG, each above its prompt; what was missed below that, in red.

    Raises:
        ValueError: the folder does not exist.
    """
    path = output_path(path)
    font, line_height = ImageFont.load_default(11), 13
    width = max(128, max(picture.image.width for picture in report.painted))
    below = [
        [(line, "black") for line in textwrap.wrap(picture.prompt, width // 6)]
        + [(f"{name}: {seen}", "#c00000") for name, seen in picture.misses.items()]
        for picture in report.painted
    ]
    height = max(picture.image.height for picture in report.painted) + line_height * max(map(len, below)) + 10
    sheet = Image.new("RGB", (columns * (width + 8) + 8, -(-len(below) // columns) * height + 8), "white")
    draw = ImageDraw.Draw(sheet)
    for place, (picture, lines) in enumerate(zip(report.painted, below, strict=True)):
        x, y = 8 + place % columns * (width + 8), 8 + place // columns * height
        sheet.paste(picture.image, (x, y))
        for number, (line, colour) in enumerate(lines):
            draw.text((x, y + picture.image.height + 2 + number * line_height), line, fill=colour, font=font)
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        sheet.save(file, format="PNG")
