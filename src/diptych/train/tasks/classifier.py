"""Training the judge to read the attributes of composed scenes.

The pictures are real scenes only. They are mirrored, moved, scaled, brightened and a little blurred, so that what
counts is the thing itself and not the crispness with which the composer drew it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor, nn

from diptych.core.precision import choose
from diptych.core.randomness import generator
from diptych.core.weights import save
from diptych.data.fresh import fresh_scenes
from diptych.data.licences import SCENES
from diptych.data.rendered import SceneData
from diptych.data.scene_pictures import ScenePictures, averaged, blank_pictures, scene_pictures, some_averaged
from diptych.data.scenes import ATTRIBUTES, Scene
from diptych.data.stored import MappedArray
from diptych.data.trouble import Trouble
from diptych.image.judge import AT_ONCE, Judge, JudgeConfig
from diptych.image.photo import to_picture
from diptych.train.card import About
from diptych.train.outline import NOTHING, Chore, Outline, channels_last
from diptych.train.recipe import Recipe
from diptych.train.start import Start

DATA = 1  # stream of randomness


@dataclass(frozen=True, kw_only=True)
class Data(SceneData):
    """[data]: scenes, and how they are varied.

    Args:
        move: largest shift, as a share of the picture's side.
        scale: largest change of scale, as a share.
        brightness, contrast: largest change, as a share of the range.
        blur: largest standard deviation of a Gaussian blur, in pixels of the size that the judge sees.
        fresh: scenes that the finished judge is measured on.
    """

    held_out: int = 1000
    move: float = 0.06
    scale: float = 0.08
    brightness: float = 0.06
    contrast: float = 0.10
    blur: float = 1.3
    fresh: int = 2000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fresh < 1:
            raise ValueError(f"data.fresh must be at least 1, not {self.fresh}")
        for name, most in (("move", 1), ("scale", 1), ("brightness", 1), ("contrast", 1), ("blur", 3)):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"data.{name} must be from 0 to {most}, not {getattr(self, name)}")


@dataclass(frozen=True)
class Model:
    """[model]: the judge's sizes, and how much more each attribute's loss counts than 1."""

    size: int = 64
    widths: tuple[int, ...] = (32, 64, 96)
    weights: dict[str, float] | None = None


def vary(pictures: Tensor, draw: np.random.Generator, data: Data) -> Tensor:
    """Mirror, move, scale, light and blur each picture (B, 3, H, W) by its own draw."""
    count = len(pictures)

    def spread(size: float, *shape: int) -> Tensor:
        return torch.from_numpy(draw.uniform(-size, size, (count, *shape)).astype(np.float32))

    turned = torch.zeros(count, 2, 3)
    zoom = 1 + spread(data.scale)
    turned[:, 0, 0] = zoom * torch.from_numpy(np.where(draw.random(count) < 0.5, -1, 1).astype(np.float32))
    turned[:, 1, 1] = zoom
    turned[:, :, 2] = 2 * spread(data.move, 2)
    grid = F.affine_grid(turned, list(pictures.shape), align_corners=False)
    pictures = F.grid_sample(pictures, grid, padding_mode="reflection", align_corners=False)
    light, contrast = 2 * spread(data.brightness, 1, 1, 1), 1 + spread(data.contrast, 1, 1, 1)
    widths = draw.uniform(0, data.blur, count) * (draw.random(count) < 0.7)
    return (blurred(pictures, torch.from_numpy(widths.astype(np.float32))) * contrast + light).clamp(-1, 1)


def blurred(pictures: Tensor, widths: Tensor) -> Tensor:
    """Each picture of (B, C, H, W) under a Gaussian of its own standard deviation, in pixels: (B,), 0 is none."""
    count, channels, height, width = pictures.shape
    taps = torch.arange(-4, 5) / widths.clamp(min=0.1)[:, None]
    kernel = (-taps.square() / 2).exp()
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)[:, None, None]
    rows = F.pad(pictures, (4, 4, 4, 4), mode="replicate").reshape(1, count * channels, height + 8, width + 8)
    soft = F.conv2d(rows, kernel, groups=count * channels)
    return F.conv2d(soft, kernel.mT, groups=count * channels).view_as(pictures)


class LabelledBatch(NamedTuple):
    """pictures (B, 3, size, size); truth (B, attributes), int64, in the order of ATTRIBUTES."""

    pictures: Tensor
    truth: Tensor


@dataclass(frozen=True)
class Varied:
    """Scenes by chance, varied, with the truth of each."""

    scenes: MappedArray
    truth: dict[str, Tensor]
    data: Data
    batch_size: int
    seed: int
    size: int

    def batch(self, step: int, rows: range) -> LabelledBatch:
        draw = generator(seed=self.seed, step=step, stream=DATA)
        here = slice(rows.start, rows.stop)
        chosen = draw.integers(0, self.data.scenes - self.data.held_out, self.batch_size)
        pictures = vary(some_averaged(self.scenes, chosen.tolist(), self.size), draw, self.data)[here]
        truth = torch.stack([values[chosen[here]] for values in self.truth.values()], dim=1)
        return LabelledBatch(pictures.contiguous(memory_format=torch.channels_last), truth)

    def troubles(self) -> list[Trouble]:
        return []


class ClassifierTask:
    unit = "pictures"
    is_splittable = True
    remarks = ()

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.data = recipe.section("data", Data)
        settings = recipe.section("model", Model)
        self.weights = dict.fromkeys(ATTRIBUTES, 1.0) | (settings.weights or {})
        with recipe.checking("model"):
            if foreign := set(self.weights) - set(ATTRIBUTES):
                raise ValueError(f"model.weights may name {', '.join(ATTRIBUTES)}, not '{min(foreign)}'")
            config = JudgeConfig(dict(ATTRIBUTES), settings.size, settings.widths)
        start = Start.of(recipe, "judge")
        if start:
            start.check("judge", config.to_dict())
        device, self.compute = choose()
        torch.manual_seed(recipe.run.seed)
        self.model: Judge = Judge(config)
        if start:
            start.fill(self.model)
        self.model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.device = device
        self.drawn: ScenePictures = scene_pictures(self.data.seed, self.data.scenes, self.data.size)
        shown = [self.drawn.scene(index) for index in range(self.data.scenes)]
        self.truth = {
            name: torch.tensor([values.index(getattr(scene, name)) for scene in shown])
            for name, values in ATTRIBUTES.items()
        }

    @property
    def networks(self) -> list[nn.Module]:
        return [self.model]

    @property
    def source(self) -> "Varied":
        run = self.recipe.run
        return Varied(self.drawn.pixels, self.truth, self.data, run.batch, run.seed, self.size)

    @property
    def size(self) -> int:
        return self.model.config.size

    def count(self, batch: LabelledBatch) -> int:
        return len(batch.pictures)

    def loss(self, batch: LabelledBatch) -> tuple[Tensor, dict[str, Tensor]]:
        logits = self.model(batch.pictures)
        truth = dict(zip(ATTRIBUTES, batch.truth.unbind(1), strict=True))
        losses = {name: F.cross_entropy(logits[name], truth[name]) for name in truth}
        total = torch.stack([self.weights[name] * loss for name, loss in losses.items()]).sum()
        return total, {name: loss.detach() for name, loss in losses.items()}

    def validate(self) -> dict[str, float]:
        """Share of held-out scenes read right, by attribute; `worn_soft` is `worn` off pictures blurred by 1 pixel."""
        found: dict[str, list[Tensor]] = {name: [] for name in (*ATTRIBUTES, "worn_soft")}
        for start in range(self.data.scenes - self.data.held_out, self.data.scenes, AT_ONCE):
            stop = min(start + AT_ONCE, self.data.scenes)
            sharp, soft = _read(self.model, torch.from_numpy(self.drawn.pixels.read(start, stop)))
            for name in ATTRIBUTES:
                found[name].append(sharp[name].argmax(1).cpu() == self.truth[name][start:stop])
            found["worn_soft"].append(soft["worn"].argmax(1).cpu() == self.truth["worn"][start:stop])
        figures = {name: float(torch.cat(parts).float().mean()) for name, parts in found.items()}
        return figures | {"mean": sum(figures[name] for name in ATTRIBUTES) / len(ATTRIBUTES)}

    def rank(self, figures: dict[str, float]) -> float:
        return -figures["mean"]

    def sample(self, directory: Path, step: int) -> None:
        """Held-out pictures, each with what the judge says of it, in red where that is wrong."""
        chosen = range(self.data.scenes - min(24, self.data.held_out), self.data.scenes)
        pictures = torch.from_numpy(self.drawn.pixels.read(chosen.start, chosen.stop))
        said = self.model.read(pictures.float() / 127.5 - 1)
        sheet = Image.new("RGB", (6 * 160, -(-len(chosen) // 6) * (self.data.size + 34)), "white")
        draw = ImageDraw.Draw(sheet)
        for place, (index, words) in enumerate(zip(chosen, said, strict=True)):
            x, y = place % 6 * 160, place // 6 * (self.data.size + 34)
            sheet.paste(to_picture(pictures[place]), (x, y))
            is_right = all(words[name] == getattr(self.drawn.scene(index), name) for name in ATTRIBUTES)
            lines = f"{words['animal']}, {words['worn']}\n{words['place']}, {words['time']}, {words['style']}"
            draw.text((x, y + self.data.size + 2), lines, fill="black" if is_right else "red")
        sheet.save(directory / f"step-{step:08d}.png")

    def about(self) -> About:
        scene = "held-out scenes whose {} is read right, a share of 1"
        return About(
            made=f"A judge: it reads five attributes off a composed scene - {', '.join(ATTRIBUTES)} - and is what "
            "`diptych evaluate MODEL --on scenes` counts with. The weights are kept as bfloat16.",
            example="pictures",
            data=f"{self.data.scenes - self.data.held_out:,} scenes composed by `diptych.data.scenes` (seed "
            f"{self.data.seed}), none of them a held-out combination, mirrored, moved, scaled, lit and blurred a "
            f"little at every sight; {self.data.held_out:,} more of the same kind validate.",
            sources=SCENES,
            figures={
                "worn_soft": f"the same off pictures blurred first, by one pixel of {self.model.config.size}",
                "mean": "of the attributes",
                **{name: scene.format(name) for name in ATTRIBUTES},
            },
            limits=(
                "It knows composed scenes and pictures like them, nothing else: of a photo it says something, too, "
                "and that means nothing.",
                "It always names one value an attribute, also where a picture shows none or two of them.",
                "Off a very soft picture it reads a scarf, now and then, as nothing worn.",
            ),
        )

    def accuracy(self) -> dict[str, float]:
        """Share of fresh scenes read right, by attribute and on the whole; half of them are held-out combinations."""
        shown: list[Scene] = []

        def pictures() -> Iterator[Image.Image]:
            for scene, picture in fresh_scenes(self.data.fresh):
                shown.append(scene)
                yield picture

        said = self.model.read_pictures(pictures())
        right = {
            name: sum(words[name] == getattr(scene, name) for words, scene in zip(said, shown, strict=True))
            for name in ATTRIBUTES
        }
        shares = {name: found / len(shown) for name, found in right.items()}
        return {"pictures": len(shown), **shares, "mean": sum(shares.values()) / len(shares)}

    def save(self, directory: Path, card: str) -> None:
        """The accuracy on fresh scenes goes into the config: where the sprites are missing, it is what is known."""
        accuracy = self.accuracy()
        config: dict[str, Any] = {
            "panel": "judge",
            "name": self.recipe.name,
            "judge": self.model.config.to_dict(),
            "accuracy": accuracy,
        }
        rows = "\n".join(f"| {name} | {100 * share:.1f} % |" for name, share in accuracy.items() if name != "pictures")
        fresh = (
            f"## Right on fresh scenes\n\n{self.data.fresh:,} scenes of a seed that nothing is trained with, half of "
            f"them held-out combinations:\n\n| attribute | right |\n|---|---|\n{rows}\n"
        )
        tensors = {name: value.to(torch.bfloat16) for name, value in self.model.state_dict().items()}
        save(directory, config, tensors, card=f"{card}\n{fresh}")


def _read(model: Judge, pictures: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The judge's logits of pictures (B, 3, H, W) uint8, as they are and blurred by a pixel of those that it sees."""
    sharp = averaged(pictures, model.config.size)
    device = next(model.parameters()).device
    return model(sharp.to(device)), model(blurred(sharp, torch.ones(len(sharp))).to(device))


def build(recipe: Recipe) -> ClassifierTask:
    return ClassifierTask(recipe)


def outline(recipe: Recipe) -> Outline:
    data, settings = recipe.section("data", Data), recipe.section("model", Model)
    with recipe.checking("model"):
        config = JudgeConfig(dict(ATTRIBUTES), settings.size, settings.widths)

    def pictures(rows: int, size: int) -> Tensor:
        return torch.randn(rows, 3, size, size).contiguous(memory_format=torch.channels_last)

    def batch(rows: int) -> LabelledBatch:
        return LabelledBatch(pictures(rows, config.size), torch.zeros(rows, len(ATTRIBUTES), dtype=torch.int64))

    def loss(model: Judge, batch: LabelledBatch) -> Tensor:
        losses = zip(model(batch.pictures).values(), batch.truth.unbind(1), strict=True)
        return torch.stack([F.cross_entropy(logits, truth) for logits, truth in losses]).sum()

    def validate(model: Judge) -> None:
        kept = torch.zeros(AT_ONCE, 3, data.size, data.size, dtype=torch.uint8)
        _read(model, kept)

    def end(model: Judge) -> None:
        model.read_pictures(picture for _, picture in fresh_scenes(AT_ONCE))

    def source(folder: Path, rows: int) -> Varied:
        blank = blank_pictures(data.seed, data.size, folder)
        few = replace(data, scenes=len(blank), held_out=1)
        truth = {name: torch.zeros(len(blank), dtype=torch.int64) for name in ATTRIBUTES}
        return Varied(blank.pixels, truth, few, rows, recipe.run.seed, config.size)

    remarks: tuple[str, ...] = ()
    try:
        next(fresh_scenes(1))
    except ValueError:
        remarks = (f"without the sprites the {data.fresh:,} scenes that are drawn and read at the end are left out",)
    return Outline(
        make=lambda: channels_last(Judge(config)),
        networks=lambda model: [model],
        batch=batch,
        loss=loss,
        unit=ClassifierTask.unit,
        validation=Chore(validate, pieces=data.held_out / AT_ONCE),
        source=source,
        ending=NOTHING if remarks else Chore(end, pieces=data.fresh / AT_ONCE),
        remarks=remarks,
    )
