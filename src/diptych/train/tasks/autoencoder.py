"""Training the autoencoder on composed scenes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from diptych.core.precision import choose
from diptych.core.randomness import generator, normal
from diptych.core.weights import save
from diptych.data.licences import SCENES
from diptych.data.rendered import RenderedScenes, render
from diptych.data.rendered import SceneData as Data
from diptych.data.trouble import Trouble
from diptych.image.autoencoder import Autoencoder, AutoencoderConfig
from diptych.image.objective import autoencoder_loss, peak_signal_to_noise
from diptych.image.photo import to_picture
from diptych.train.card import About
from diptych.train.outline import Outline, channels_last
from diptych.train.recipe import Recipe
from diptych.train.start import Start

DATA, LATENT = 1, 2  # streams of randomness


@dataclass(frozen=True)
class Model:
    """[model]: the autoencoder's sizes and the weights of its loss.

    Args:
        trains_encoder: false keeps the encoder of `run.init_from` as it is and trains the decoder alone, so that the
            latents stay those that a painter has learned.
    """

    latent_channels: int = 8
    fold: int = 4
    widths: tuple[int, ...] = (128, 192)
    encoder_blocks: int = 1
    decoder_blocks: int = 2
    edge_weight: float = 1.0
    kl_weight: float = 1e-4
    trains_encoder: bool = True


class PictureBatch(NamedTuple):
    """pictures (B, 3, H, W), float32, -1..1, and noise for their latents (B, latent_channels, h, w)."""

    pictures: Tensor
    noise: Tensor


@dataclass(frozen=True)
class Pictures:
    """Scenes in an order by chance, each as it is or mirrored. Args: `latent` is the shape of one latent."""

    scenes: RenderedScenes
    held_out: int
    batch_size: int
    seed: int
    latent: tuple[int, int, int]

    def batch(self, step: int, rows: range) -> PictureBatch:
        draw = generator(seed=self.seed, step=step, stream=DATA)
        here = slice(rows.start, rows.stop)
        chosen = draw.integers(0, len(self.scenes.pictures) - self.held_out, self.batch_size)[here]
        is_mirrored = torch.from_numpy(draw.random(self.batch_size) < 0.5)[here, None, None, None]
        noise = normal((self.batch_size, *self.latent), seed=self.seed, step=step, stream=LATENT)[here]
        pictures = torch.from_numpy(self.scenes.pictures[chosen]).float() / 127.5 - 1
        pictures = torch.where(is_mirrored, pictures.flip(-1), pictures)
        return PictureBatch(pictures.contiguous(memory_format=torch.channels_last), noise)

    def troubles(self) -> list[Trouble]:
        return []


class AutoencoderTask:
    unit = "pictures"
    remarks = ()

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.data = recipe.section("data", Data)
        self.settings = recipe.section("model", Model)
        names = ("latent_channels", "fold", "widths", "encoder_blocks", "decoder_blocks")
        sizes = {name: getattr(self.settings, name) for name in names}
        with recipe.checking("model"):
            config = AutoencoderConfig.from_dict(sizes)
        if self.data.size < 1 or self.data.size % config.downsampling:
            with recipe.checking("data", "size"):
                raise ValueError(f"data.size must be a multiple of {config.downsampling}, not {self.data.size}")
        start = Start.of(recipe, "autoencoder")
        if start:
            start.check("autoencoder", config.to_dict())
        elif not self.settings.trains_encoder:
            with recipe.checking("model", "trains_encoder"):
                raise ValueError("model.trains_encoder = false needs a trained encoder: name one with run.init_from")
        device, self.compute = choose()
        torch.manual_seed(recipe.run.seed)
        self.model: Autoencoder = Autoencoder(config)
        if start:
            start.fill(self.model, "autoencoder." if start.config.get("panel") == "image" else "")
        self.model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model.encoder.requires_grad_(self.settings.trains_encoder)
        self.device = device
        self.scenes: RenderedScenes = render(self.data.seed, self.data.scenes, self.data.size)

    @property
    def networks(self) -> list[nn.Module]:
        return [self.model.encoder, self.model.decoder]

    @property
    def source(self) -> "Pictures":
        config, run = self.model.config, self.recipe.run
        side = self.data.size // config.downsampling
        return Pictures(self.scenes, self.data.held_out, run.batch, run.seed, (config.latent_channels, side, side))

    def count(self, batch: PictureBatch) -> int:
        return len(batch.pictures)

    def loss(self, batch: PictureBatch, step: int) -> tuple[Tensor, dict[str, float]]:
        weights = self.settings
        return autoencoder_loss(self.model, *batch, edge_weight=weights.edge_weight, kl_weight=weights.kl_weight)

    def _held_out(self, count: int) -> Tensor:
        kept = self.scenes.pictures[len(self.scenes.pictures) - self.data.held_out :][:count]
        return torch.from_numpy(kept.copy()).to(self.device).float() / 127.5 - 1

    def _rebuild(self, pictures: Tensor) -> Tensor:
        with torch.autocast(self.device.type, self.compute, enabled=self.compute != torch.float32):
            return self.model.decode(self.model.encode(pictures))

    def validate(self) -> dict[str, float]:
        pictures = self._held_out(self.data.held_out)
        if self.settings.trains_encoder:
            self.model.measure(pictures)
        rebuilt = torch.cat([self._rebuild(part) for part in pictures.split(32)])
        return {
            "psnr_db": peak_signal_to_noise(rebuilt, pictures).mean().item(),
            "absolute_error": (rebuilt - pictures).abs().mean().item(),
        }

    def rank(self, figures: dict[str, float]) -> float:
        return -figures["psnr_db"]

    def sample(self, directory: Path, step: int) -> None:
        """Held-out pictures above what came back of them."""
        pictures = self._held_out(8)
        rows = torch.cat((torch.cat(list(pictures), -1), torch.cat(list(self._rebuild(pictures)), -1)), -2)
        sheet: Image.Image = to_picture(rows)
        sheet.save(directory / f"step-{step:08d}.png")

    def about(self) -> About:
        config, size = self.model.config, self.data.size
        side = size // config.downsampling
        return About(
            made=f"A convolutional autoencoder: it writes a picture of {size} x {size} pixels down as {side} x {side} "
            f"x {config.latent_channels} numbers, in which a diffusion model works, and reads it back.",
            example="pictures",
            data=f"{self.data.scenes - self.data.held_out:,} scenes composed by `diptych.data.scenes` (seed "
            f"{self.data.seed}), none of them a held-out combination; {self.data.held_out:,} more of the same kind "
            "validate.",
            sources=SCENES,
            figures={
                "psnr_db": "peak signal-to-noise ratio of held-out pictures, written down and read back, in dB; "
                "higher is better",
                "absolute_error": "mean absolute error of their pixels, which lie in -1..1; lower is better",
            },
            limits=(
                "It knows composed scenes, drawn and of few colours: photos come back blurred.",
                "What is finer than two or three pixels is lost, and no painter that works in these numbers can paint "
                "it.",
            ),
        )

    def save(self, directory: Path, card: str) -> None:
        if self.settings.trains_encoder:
            chosen = torch.linspace(0, self.data.scenes - self.data.held_out - 1, 512).long().numpy()
            self.model.measure(torch.from_numpy(self.scenes.pictures[chosen]).to(self.device).float() / 127.5 - 1)
        config: dict[str, Any] = {"kind": "autoencoder", "autoencoder": self.model.config.to_dict()}
        save(directory, config, self.model.state_dict(), card=card)


def build(recipe: Recipe) -> AutoencoderTask:
    return AutoencoderTask(recipe)


MEASURED = 512  # pictures that the finished latents are measured on


def outline(recipe: Recipe) -> Outline:
    data, settings = recipe.section("data", Data), recipe.section("model", Model)
    names = ("latent_channels", "fold", "widths", "encoder_blocks", "decoder_blocks")
    with recipe.checking("model"):
        config = AutoencoderConfig.from_dict({name: getattr(settings, name) for name in names})
    side = data.size // config.downsampling

    def make() -> nn.Module:
        model = Autoencoder(config)
        model.encoder.requires_grad_(settings.trains_encoder)
        return channels_last(model)

    def pictures(rows: int) -> Tensor:
        return torch.randn(rows, 3, data.size, data.size).contiguous(memory_format=torch.channels_last)

    def batch(rows: int) -> PictureBatch:
        return PictureBatch(pictures(rows), torch.randn(rows, config.latent_channels, side, side))

    def loss(model: Autoencoder, batch: PictureBatch) -> Tensor:
        edge, kl = settings.edge_weight, settings.kl_weight
        return autoencoder_loss(model, *batch, edge_weight=edge, kl_weight=kl)[0]

    def validate(model: Autoencoder) -> None:
        if settings.trains_encoder:
            kept = torch.zeros(max(MEASURED, data.held_out), 3, data.size, data.size, dtype=torch.uint8)
            model.measure(kept.float() / 127.5 - 1)
        model.decode(model.encode(pictures(32)))

    return Outline(
        make=make,
        networks=lambda model: [model.encoder, model.decoder],
        batch=batch,
        loss=loss,
        unit=AutoencoderTask.unit,
        validate=validate,
    )
