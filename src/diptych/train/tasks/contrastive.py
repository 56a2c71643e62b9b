"""Training a pairing: which picture and which caption belong together."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from diptych.core.precision import choose
from diptych.core.tokenizer import Tokenizer
from diptych.data import scenes
from diptych.data.licences import SCENES
from diptych.data.pairs import PairBatch, ScenePairs, caption, scene_questions
from diptych.data.rendered import SceneData
from diptych.data.scene_pictures import blank_pictures, scene_pictures
from diptych.image.clip import PictureTowerConfig, TextTowerConfig
from diptych.image.contrast import LOSSES, contrastive_loss, equal_captions
from diptych.image.encoders import EncoderConfig
from diptych.image.judge import AT_ONCE
from diptych.image.matching import measure_matching
from diptych.image.pairing import Pairing, PairingConfig, PairingModel
from diptych.image.photo import to_picture
from diptych.train.card import About
from diptych.train.outline import Chore, Outline, beside, channels_last
from diptych.train.recipe import Recipe
from diptych.train.start import Start

SHOWN = 12


@dataclass(frozen=True, kw_only=True)
class Data(SceneData):
    """[data]: scenes and their words.

    Args:
        captions: of the vocabulary's training.
        vocab_size: tokens of the captions' vocabulary.
    """

    captions: int = 8000
    vocab_size: int = 512


@dataclass(frozen=True)
class Model:
    """[model]: the loss and the sizes of the two towers; see `PairingConfig`.

    Args:
        picture_tower, caption_tower: tables of CLIP's transformers, which take the place of `widths` and `encoder`.
    """

    loss: str = "softmax"
    dimensions: int = 128
    size: int = 64
    widths: tuple[int, ...] = (32, 64, 96)
    encoder: dict[str, Any] = field(default_factory=dict)
    picture_tower: dict[str, Any] = field(default_factory=dict)
    caption_tower: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ValueError(f"model.loss must be one of {', '.join(LOSSES)}, not '{self.loss}'")


def pairing_config(recipe: Recipe, vocab_size: int, end: int = 0) -> PairingConfig:
    """The two towers that a recipe asks for, which read a vocabulary of that size with that end of a text."""
    settings = recipe.section("model", Model)
    values: dict[str, Any] = {name: getattr(settings, name) for name in ("loss", "dimensions", "size", "widths")}
    values["encoder"] = {"vocab_size": vocab_size} | recipe.sizes("model.encoder", EncoderConfig)
    projects = {"projection": settings.dimensions}
    if settings.picture_tower:
        sees = projects | {"size": settings.size}
        values["picture_tower"] = sees | recipe.sizes("model.picture_tower", PictureTowerConfig)
    if settings.caption_tower:
        reads = projects | {"vocab_size": vocab_size, "end": end}
        values["caption_tower"] = reads | recipe.sizes("model.caption_tower", TextTowerConfig)
    with recipe.checking("model"):
        return PairingConfig.from_dict(values)


def tokenizer_of(data: Data) -> Tokenizer:
    """Of captions of the first scenes."""
    known = range(min(data.captions, data.scenes - data.held_out))
    return Tokenizer.train(
        (caption(data, scenes.scene_at(data.seed, index), index, 0) for index in known), data.vocab_size
    )


class ContrastiveTask:
    """Every row of a batch is measured against every other, so the loss of a batch is not the mean of its parts'."""

    unit = "pictures"
    is_splittable = False
    remarks = ()

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.data = recipe.section("data", Data)
        settings = recipe.section("model", Model)
        pairing_config(recipe, self.data.vocab_size)
        if self.data.size < settings.size:
            with recipe.checking("data", "size"):
                raise ValueError(f"data.size must be at least model.size ({settings.size}), not {self.data.size}")
        if recipe.run.batch < 2:
            with recipe.checking("run", "batch"):
                raise ValueError("run.batch must be at least 2: a pair is told from the others of its batch")
        start = Start.of(recipe, "pairing")
        with recipe.checking("data", "vocab_size"):
            tokenizer = start.tokenizer() if start else tokenizer_of(self.data)
        config = pairing_config(recipe, tokenizer.size, tokenizer.end)
        if start:
            start.check("pairing", config.to_dict())
        self.device, _ = choose()
        torch.manual_seed(recipe.run.seed)
        self.model: Pairing = Pairing(config)
        if start:
            start.fill(self.model)
        self.model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.matcher = PairingModel(recipe.name, self.model, tokenizer)
        drawn = scene_pictures(self.data.seed, self.data.scenes, self.data.size)
        self.source = ScenePairs(
            self.data, drawn, tokenizer, config.length, config.size, recipe.run.seed, recipe.run.batch
        )
        held_out = range(self.data.scenes - self.data.held_out, self.data.scenes)
        self.pictures = drawn.pixels.read(held_out.start, held_out.stop)
        self.truth = [drawn.scene(index) for index in held_out]

    @property
    def networks(self) -> list[nn.Module]:
        return [self.model]

    def count(self, batch: PairBatch) -> int:
        return len(batch.pictures)

    def loss(self, batch: PairBatch) -> tuple[Tensor, dict[str, Tensor]]:
        model = self.model
        model.hold_scale()
        seen, read = model.see(batch.pictures), model.read(batch.tokens, batch.mask)
        positives = equal_captions(batch.tokens)
        loss = contrastive_loss(seen, read, model.log_scale, model.bias, positives, loss=model.config.loss)
        return loss, {"scale": model.log_scale.detach().exp()}

    def validate(self) -> dict[str, float]:
        """Retrieval among held-out scenes and zero-shot classification of them, shares of 1, in float32."""
        captions = [scene.caption() for scene in self.truth]
        return measure_matching(self.matcher, self.pictures, captions, *scene_questions(self.truth)).figures()

    def rank(self, figures: dict[str, float]) -> float:
        return -figures["to_caption"]

    def sample(self, directory: Path, step: int) -> None:
        """Held-out pictures, each with the caption that it lies nearest to, in red where that is not its own."""
        captions = [scene.caption() for scene in self.truth]
        nearest = (self.matcher.see(self.pictures) @ self.matcher.read(captions).T).argmax(1).tolist()
        sheet = Image.new("RGB", (4 * 200, -(-min(SHOWN, len(captions)) // 4) * (self.data.size + 34)), "white")
        draw = ImageDraw.Draw(sheet)
        for place, found in enumerate(nearest[:SHOWN]):
            x, y = place % 4 * 200, place // 4 * (self.data.size + 34)
            sheet.paste(to_picture(torch.from_numpy(self.pictures[place].copy())), (x, y))
            said = captions[found]
            split = len(said) if len(said) < 32 else said.rindex(" ", 0, 32)
            colour = "black" if said == captions[place] else "red"
            draw.text((x, y + self.data.size + 2), f"{said[:split]}\n{said[split:].strip()}", fill=colour)
        sheet.save(directory / f"step-{step:08d}.png")

    def about(self) -> About:
        config = self.model.config
        return About(
            made="A pairing in the manner of CLIP: it places pictures and captions in one space of "
            f"{config.dimensions} dimensions, near each other where they belong together ({config.loss} loss).",
            example="pictures with captions",
            data=f"{self.data.scenes - self.data.held_out:,} scenes composed by `diptych.data.scenes` (seed "
            f"{self.data.seed}), none of them a held-out combination, captioned in a fresh wording at every sight; "
            f"{self.data.held_out:,} more of the same kind validate.",
            sources=SCENES,
            figures={
                "to_caption": f"pictures whose caption is the nearest of {self.data.held_out}, a share of 1",
                "to_picture": f"captions whose picture is the nearest of {self.data.held_out}, a share of 1",
                "zero_shot/": "pictures for which, of the attribute's values, the caption of their own ('a cat') is "
                "the nearest, a share of 1; nothing was trained to tell them",
            },
            limits=(
                "It knows composed scenes and short English captions of them, nothing else.",
                f"It sees {config.size} x {config.size} pixels: what is small in a picture is hardly there for it.",
                "Equal captions count as the same; captions that say the same in other words were trained apart.",
            ),
        )

    def save(self, directory: Path, card: str) -> None:
        self.matcher.save(directory, card)


def build(recipe: Recipe) -> ContrastiveTask:
    return ContrastiveTask(recipe)


def outline(recipe: Recipe) -> Outline:
    data = recipe.section("data", Data)
    config = pairing_config(recipe, data.vocab_size)

    def batch(rows: int) -> PairBatch:
        pictures = torch.randn(rows, 3, config.size, config.size).contiguous(memory_format=torch.channels_last)
        tokens = torch.zeros(rows, config.length, dtype=torch.int64)
        return PairBatch(pictures, tokens, torch.ones_like(tokens).bool())

    def loss(model: Pairing, batch: PairBatch) -> Tensor:
        seen, read = model.see(batch.pictures), model.read(batch.tokens, batch.mask)
        positives = equal_captions(batch.tokens)
        return contrastive_loss(seen, read, model.log_scale, model.bias, positives, loss=config.loss)

    asked = [len(captions) for classes in scene_questions(())[1].values() for captions in classes.values()]

    def validate(model: Pairing) -> None:
        kept = torch.zeros(data.held_out, 3, data.size, data.size, dtype=torch.uint8)
        for part in kept.split(AT_ONCE):
            model.see(beside(model, part).float() / 127.5 - 1)
        for captions in (data.held_out, *asked):
            tokens = beside(model, torch.zeros(captions, config.length, dtype=torch.int64))
            model.read(tokens, torch.ones_like(tokens).bool())

    def source(folder: Path, rows: int) -> ScenePairs:
        blank = blank_pictures(data.seed, data.size, folder)
        few = replace(data, scenes=len(blank), held_out=1)
        return ScenePairs(few, blank, tokenizer_of(data), config.length, config.size, recipe.run.seed, rows)

    return Outline(
        make=lambda: channels_last(Pairing(config)),
        networks=lambda model: [model],
        batch=batch,
        loss=loss,
        unit=ContrastiveTask.unit,
        validation=Chore(validate),
        source=source,
        data=data.held_out * 3 * data.size**2,
    )
