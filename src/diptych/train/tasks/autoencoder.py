"""Training the autoencoder on composed scenes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from diptych.core.precision import choose
from diptych.core.randomness import generator, normal
from diptych.core.weights import save
from diptych.data.licences import SCENES
from diptych.data.rendered import RenderedScenes, render
from diptych.data.rendered import SceneData as Data
from diptych.image.autoencoder import Autoencoder, AutoencoderConfig
from diptych.image.objective import autoencoder_loss
from diptych.image.photo import to_picture
from diptych.image.validation import fidelity
from diptych.train.card import About
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


class AutoencoderTask:
    unit = "pictures"

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

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        seed, size = self.recipe.run.seed, self.recipe.run.batch
        draw = generator(seed=seed, step=step, stream=DATA)
        chosen = draw.integers(0, self.data.scenes - self.data.held_out, size)
        pictures = torch.from_numpy(self.scenes.pictures[chosen]).float() / 127.5 - 1
        mirrored = torch.from_numpy(draw.random(size) < 0.5)[:, None, None, None]
        pictures = torch.where(mirrored, pictures.flip(-1), pictures)
        side = self.data.size // self.model.config.downsampling
        noise = normal((size, self.model.config.latent_channels, side, side), seed=seed, step=step, stream=LATENT)
        return pictures.to(self.device, memory_format=torch.channels_last), noise.to(self.device)

    def count(self, batch: tuple[Tensor, Tensor]) -> int:
        return len(batch[0])

    def loss(self, batch: tuple[Tensor, Tensor], step: int) -> tuple[Tensor, dict[str, float]]:
        weights = self.settings
        return autoencoder_loss(self.model, *batch, edge_weight=weights.edge_weight, kl_weight=weights.kl_weight)

    def _held_out(self, count: int) -> Tensor:
        kept = self.scenes.pictures[len(self.scenes.pictures) - self.data.held_out :][:count]
        return torch.from_numpy(kept.copy()).to(self.device).float() / 127.5 - 1

    def _rebuild(self, pictures: Tensor) -> Tensor:
        with torch.autocast(self.device.type, self.compute, enabled=self.compute != torch.float32):
            return self.model.decode(self.model.encode(pictures))

    def validate(self) -> dict[str, float]:
        """PSNR, SSIM and absolute error of held-out pictures, in float32."""
        return fidelity(self.model, self.scenes.pictures[-self.data.held_out :]).figures()

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
                "ssim": "structural similarity of their luminance (Wang et al. 2004); 1 is the same picture",
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
        config: dict[str, Any] = {
            "kind": "autoencoder",
            "name": self.recipe.name,
            "size": self.data.size,
            "autoencoder": self.model.config.to_dict(),
        }
        save(directory, config, self.model.state_dict(), card=card)


def build(recipe: Recipe) -> AutoencoderTask:
    return AutoencoderTask(recipe)
