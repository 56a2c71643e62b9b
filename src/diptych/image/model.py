"""An image model: text encoder, denoiser and autoencoder, loaded from a checkpoint, ready to paint."""

from collections.abc import Sequence
from pathlib import Path as FilePath
from typing import Any, Literal, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from diptych import __version__
from diptych.core import weights
from diptych.core.generation import Generation
from diptych.core.precision import choose
from diptych.core.randomness import check_seed
from diptych.core.spelling import unknown
from diptych.core.tokenizer import Tokenizer
from diptych.image.autoencoder import Autoencoder, AutoencoderConfig
from diptych.image.denoiser import Condition, Denoiser
from diptych.image.encoders import EncoderConfig, TextEncoder, encode_prompts
from diptych.image.path import path_named
from diptych.image.photo import to_pixels
from diptych.image.runner import ImageRequest, ImageResult, ImageRunner, ImageStep
from diptych.image.unet import UNet, UNetConfig
from diptych.image.validation import DenoisingLoss, denoising_loss, latents_of


class ImageModel:
    """Paints pictures from prompts.

    Args:
        name: what traces, pictures and lists call it.
        encoder, unet, autoencoder: the three networks; the first two may be in a fast dtype, the last is float32.
        tokenizer: of the prompts.
        path: name of the noise path (see `path.PATHS`).
        size: pixels a side of its pictures.
    """

    panel: Literal["image"] = "image"

    def __init__(
        self,
        name: str,
        *,
        encoder: TextEncoder,
        unet: UNet,
        autoencoder: Autoencoder,
        tokenizer: Tokenizer,
        path: str,
        size: int,
    ) -> None:
        self.name, self.tokenizer, self.size = name, tokenizer, size
        self.encoder, self.unet, self.autoencoder = encoder, unet, autoencoder
        self.path = path_named(path)
        if unet.config.channels != autoencoder.config.latent_channels:
            raise ValueError(
                f"the U-Net has {unet.config.channels} channels, the autoencoder {autoencoder.config.latent_channels}"
            )
        if unet.config.context_width != encoder.config.width:
            raise ValueError(
                f"the U-Net's context_width is {unet.config.context_width}, the text encoder's {encoder.config.width}"
            )
        side = size // autoencoder.config.downsampling
        self.latent_shape = (unet.config.channels, side, side)
        self.config: dict[str, Any] = {
            "panel": "image",
            "name": name,
            "size": size,
            "path": path,
            "prediction": "noise",
            "encoder": encoder.config.to_dict(),
            "unet": unet.config.to_dict(),
            "autoencoder": autoencoder.config.to_dict(),
        }

    @classmethod
    def load(cls, directory: str | FilePath, *, device: str | None = None, dtype: str | None = None) -> Self:
        """Raises: ValueError for a directory that is no whole image checkpoint, a device or dtype that is not here."""
        chosen_device, chosen_dtype = choose(device, dtype)
        config = weights.read_config(directory)
        known = ("panel", "name", "size", "path", "prediction", "encoder", "unet", "autoencoder")
        for key in known:
            if key not in config:
                raise ValueError(f"'{directory}/config.json' lacks '{key}'")
        for key in config:
            if key not in known:
                raise unknown("setting in config.json", key, known)
        if config["panel"] != "image" or config["prediction"] != "noise":
            raise ValueError(f"'{directory}' is not an image checkpoint that predicts noise")
        encoder = TextEncoder(EncoderConfig.from_dict(config["encoder"]))
        unet = UNet(UNetConfig.from_dict(config["unet"]))
        autoencoder = Autoencoder(AutoencoderConfig.from_dict(config["autoencoder"]))
        whole = nn.ModuleDict({"encoder": encoder, "unet": unet, "autoencoder": autoencoder})
        weights.load_into(whole, directory)
        whole.eval().requires_grad_(False).to(chosen_device)
        unet.to(dtype=chosen_dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        autoencoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return cls(
            str(config["name"]),
            encoder=encoder,
            unet=unet,
            autoencoder=autoencoder,
            tokenizer=Tokenizer.load(FilePath(directory) / "tokenizer.json"),
            path=config["path"],
            size=config["size"],
        )

    def save(self, directory: str | FilePath, card: str | None = None, *, dtype: torch.dtype = torch.bfloat16) -> None:
        """Write a checkpoint directory, whole or not at all. `card` is the text of its README.md."""
        parts = {"encoder": self.encoder, "unet": self.unet, "autoencoder": self.autoencoder}
        tensors = {
            f"{part}.{name}": value.to(dtype)
            for part, module in parts.items()
            for name, value in module.state_dict().items()
        }
        weights.save(directory, self.config, tensors, tokenizer=self.tokenizer, card=card)

    def encode(self, prompts: Sequence[str], *, cuts: bool = False) -> Condition:
        """Prompts as the denoiser sees them; "" is what caption dropout trained.

        Args:
            cuts: keep the first tokens of a prompt that has too many.

        Raises:
            ValueError: a prompt that is too long and not to be cut.
        """
        device = self.encoder.embedding.weight.device
        tokens, mask = encode_prompts(self.tokenizer, list(prompts), self.encoder.config.length, cuts=cuts)
        tokens, mask = tokens.to(device), mask.to(device)
        return Condition(self.encoder(tokens, mask), mask)

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) to pictures (B, 3, H, W), about -1..1, float32."""
        return self.autoencoder.decode(latents.to(self.autoencoder.shift.device))

    def runner(self) -> ImageRunner:
        """A fresh runner over this model, for many requests at once."""
        dtype = str(next(self.unet.parameters()).dtype).removeprefix("torch.")
        facts = {"dtype": dtype, "version": __version__}
        return ImageRunner(
            Denoiser(self.unet), self.path, self.encode, self.decode, self.latent_shape, name=self.name, facts=facts
        )

    def generate(
        self,
        prompt: str,
        *,
        negative_prompt: str = "",
        steps: int = 30,
        guidance_scale: float = 5.0,
        sampler: str = "dpm++-2m",
        nodes: str | None = None,
        seed: int | None = None,
        count: int = 1,
        noise: Tensor | None = None,
        first_sample: int = 0,
    ) -> Generation[ImageStep, ImageResult]:
        """Paint a prompt: iterate for steps, or call `.result()`. See `ImageRequest` for the settings.

        Raises:
            ValueError: for a setting out of its range, or a prompt that is empty or too long.
        """
        request = ImageRequest(
            prompt=prompt,
            negative_prompt=negative_prompt,
            steps=steps,
            guidance_scale=guidance_scale,
            sampler=sampler,
            nodes=nodes,
            seed=check_seed(seed),
            count=count,
            noise=noise,
            first_sample=first_sample,
        )
        return Generation(self.runner(), request)

    @torch.no_grad()
    def noise_loss(
        self, images: Sequence[Image.Image] | np.ndarray, captions: Sequence[str], *, seed: int = 0, batch: int = 32
    ) -> DenoisingLoss:
        """The denoising loss of captioned pictures by noise level; see `validation.denoising_loss`.

        Args:
            images: of the model's size; or pixels (N, 3, H, W), uint8.
            batch: predictions in one call; it changes the speed, and the loss by rounding alone.

        Raises:
            ValueError: another number of captions than pictures, none of them, or pictures of another size.
        """
        if len(images) != len(captions) or not len(images):
            raise ValueError(f"noise_loss needs a caption for each picture, not {len(captions)} for {len(images)}")
        pictures = images if isinstance(images, np.ndarray) else to_pixels(images)
        if pictures.shape[1:] != (3, self.size, self.size):
            height, width = pictures.shape[-2:]
            raise ValueError(
                f"'{self.name}' paints {self.size} x {self.size} pixels; these pictures are {width} x {height}"
            )
        clean = latents_of(self.autoencoder, pictures, batch)
        return denoising_loss(self.unet, self.path, clean, self.encode(captions), seed=seed, batch=batch)
