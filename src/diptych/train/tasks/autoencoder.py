"""Training the autoencoder to give pictures back."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from diptych.core.precision import choose
from diptych.core.randomness import normal
from diptych.core.weights import save
from diptych.data.buckets import fit
from diptych.data.picture_source import PictureSource
from diptych.data.training_pictures import PictureData as Data
from diptych.data.training_pictures import training_pictures
from diptych.data.trouble import Trouble, Troubles
from diptych.image.autoencoder import Autoencoder, AutoencoderConfig
from diptych.image.fidelity import peak_signal_to_noise, structural_similarity
from diptych.image.objective import autoencoder_loss
from diptych.image.photo import to_picture
from diptych.image.validation import AT_ONCE, fidelity
from diptych.train.card import About, earlier_stages
from diptych.train.outline import NOTHING, Chore, Outline, beside, channels_last
from diptych.train.recipe import Recipe
from diptych.train.start import Start

LATENT = 2  # stream of randomness
MEASURED = 512  # pictures of which the latents are brought to mean 0 and deviation 1


@dataclass(frozen=True)
class Model:
    """[model]: the autoencoder's sizes and switches, as `AutoencoderConfig` has them, and the weights of its loss.

    Args:
        trains_encoder: false keeps the encoder of `run.init_from` as it is and trains the decoder alone, so that the
            latents stay those that a painter has learned.
    """

    latent_channels: int = 8
    fold: int = 4
    widths: tuple[int, ...] = (128, 192)
    encoder_blocks: int = 1
    decoder_blocks: int = 2
    groups: int = 8
    norm_eps: float = 1e-5
    blocks_widen: bool = False
    pads_after: bool = False
    middle: str = "none"
    has_latent_convs: bool = False
    edge_weight: float = 1.0
    kl_weight: float = 1e-4
    trains_encoder: bool = True

    def autoencoder(self) -> AutoencoderConfig:
        """Raises: ValueError for sizes that do not go together."""
        names = [entry.name for entry in fields(AutoencoderConfig) if hasattr(self, entry.name)]
        return AutoencoderConfig.from_dict({name: getattr(self, name) for name in names})


class NoisedPictures(NamedTuple):
    """pictures (B, 3, H, W), float32, -1..1, and noise for their latents (B, latent_channels, h, w)."""

    pictures: Tensor
    noise: Tensor


@dataclass(frozen=True)
class Noised:
    """Pictures with the draws of their latents. Args: `downsampling` is pixels of a picture for one of a latent."""

    source: PictureSource
    latent_channels: int
    downsampling: int
    batch_size: int
    seed: int

    def batch(self, step: int, rows: range) -> NoisedPictures:
        pictures = self.source.batch(step, rows).pictures
        height, width = (side // self.downsampling for side in pictures.shape[-2:])
        shape = (self.batch_size, self.latent_channels, height, width)
        noise = normal(shape, seed=self.seed, step=step, stream=LATENT)[rows.start : rows.stop]
        return NoisedPictures(pictures.contiguous(memory_format=torch.channels_last), noise)

    def troubles(self) -> Sequence[Trouble]:
        return self.source.troubles()


class AutoencoderTask:
    unit = "pictures"
    is_splittable = True

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.data = recipe.section("data", Data)
        self.settings = recipe.section("model", Model)
        with recipe.checking("model"):
            config = self.settings.autoencoder()
        if self.data.size < 1 or self.data.size % config.downsampling:
            with recipe.checking("data", "size"):
                raise ValueError(f"data.size must be a multiple of {config.downsampling}, not {self.data.size}")
        start = Start.of(recipe, "autoencoder")
        if start:
            start.check(
                "autoencoder",
                config.to_dict(),
                read=lambda found: AutoencoderConfig.from_dict(dict(found)).to_dict(),
            )
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
        troubles = Troubles()
        with recipe.checking("data"):
            self.pictures = training_pictures(
                self.data, multiple=config.downsampling, batch=recipe.run.batch, troubles=troubles
            )
        self.remarks: tuple[str, ...] = tuple(filter(None, [str(troubles)]))

    @property
    def networks(self) -> list[nn.Module]:
        return [self.model.encoder, self.model.decoder]

    @property
    def source(self) -> Noised:
        config, run, pictures = self.model.config, self.recipe.run, self.pictures
        source = PictureSource(
            pictures.train,
            pictures.buckets,
            batch=run.batch,
            seed=run.seed,
            mirrors=True,
            cuts="anywhere",
        )
        return Noised(source, config.latent_channels, config.downsampling, run.batch, run.seed)

    def count(self, batch: NoisedPictures) -> int:
        return len(batch.pictures)

    def loss(self, batch: NoisedPictures) -> tuple[Tensor, dict[str, Tensor]]:
        weights = self.settings
        return autoencoder_loss(self.model, *batch, edge_weight=weights.edge_weight, kl_weight=weights.kl_weight)

    def _held_out(self, count: int) -> Tensor:
        return _values(self.pictures.held_out.pictures[:count]).to(self.device)

    def _rebuild(self, pictures: Tensor) -> Tensor:
        with torch.autocast(self.device.type, self.compute, enabled=self.compute != torch.float32):
            return self.model.decode(self.model.encode(pictures))

    def validate(self) -> dict[str, float]:
        """PSNR, SSIM and absolute error of held-out pictures, in float32."""
        return fidelity(self.model, self.pictures.held_out.pictures).figures()

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
            data=self.pictures.about,
            sources=self.pictures.sources,
            figures={
                "psnr_db": "peak signal-to-noise ratio of held-out pictures, written down and read back, in dB; "
                "higher is better",
                "ssim": "structural similarity of their luminance (Wang et al. 2004); 1 is the same picture",
                "absolute_error": "mean absolute error of their pixels, which lie in -1..1; lower is better",
            },
            limits=(
                "It knows pictures like those above and no others: of composed scenes, drawn and of few colours, to "
                "photos it is a long way.",
                "What is finer than two or three pixels is lost, and no painter that works in these numbers can paint "
                "it.",
            ),
        )

    def save(self, directory: Path, card: str) -> None:
        if self.settings.trains_encoder:
            self.model.measure(self._some(MEASURED))
        config: dict[str, Any] = {
            "kind": "autoencoder",
            "name": self.recipe.name,
            "size": self.data.size,
            "autoencoder": self.model.config.to_dict(),
        }
        if self.recipe.run.init_from:
            card += earlier_stages(self.recipe.run.init_from)
        save(directory, config, self.model.state_dict(), card=card)

    def _some(self, count: int) -> Iterator[Tensor]:
        """Training pictures from all over the set, cut to the square, a few at a time; fewer where some are broken."""
        train = self.pictures.train
        for part in torch.linspace(0, len(train) - 1, min(count, len(train))).long().split(AT_ONCE):
            found = []
            for index in part.tolist():
                with suppress(ValueError, OSError):
                    found.append(fit(train.read(index), (self.data.size, self.data.size)).transpose(2, 0, 1))
            if found:
                yield _values(np.stack(found)).to(self.device)


def _values(pictures: np.ndarray) -> Tensor:
    """Pictures (N, 3, H, W) uint8 as float32, -1..1."""
    return torch.from_numpy(pictures).float().div_(127.5).sub_(1)


def build(recipe: Recipe) -> AutoencoderTask:
    return AutoencoderTask(recipe)


def outline(recipe: Recipe) -> Outline:
    data, settings = recipe.section("data", Data), recipe.section("model", Model)
    with recipe.checking("model"):
        config = settings.autoencoder()
    side = data.size // config.downsampling

    def make() -> nn.Module:
        model = Autoencoder(config)
        model.encoder.requires_grad_(settings.trains_encoder)
        return channels_last(model)

    def pictures(rows: int) -> Tensor:
        return torch.randn(rows, 3, data.size, data.size).contiguous(memory_format=torch.channels_last)

    def batch(rows: int) -> NoisedPictures:
        return NoisedPictures(pictures(rows), torch.randn(rows, config.latent_channels, side, side))

    def loss(model: Autoencoder, batch: NoisedPictures) -> Tensor:
        edge, kl = settings.edge_weight, settings.kl_weight
        return autoencoder_loss(model, *batch, edge_weight=edge, kl_weight=kl)[0]

    def some() -> Tensor:
        return torch.zeros(AT_ONCE, 3, data.size, data.size, dtype=torch.uint8).float() / 127.5 - 1

    def validate(model: Autoencoder) -> None:
        part = beside(model, some())
        rebuilt = model.decoder(model.moments(part)[0]).float().clamp(-1, 1)
        peak_signal_to_noise(rebuilt, part)
        structural_similarity(rebuilt, part)

    return Outline(
        make=make,
        networks=lambda model: [model.encoder, model.decoder],
        batch=batch,
        loss=loss,
        unit=AutoencoderTask.unit,
        validation=Chore(validate, pieces=data.held_out / AT_ONCE),
        ending=Chore(lambda model: model.moments(beside(model, some())), MEASURED / AT_ONCE)
        if settings.trains_encoder
        else NOTHING,
        data=data.held_out * 3 * data.size**2,
    )
