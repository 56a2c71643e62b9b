"""An image model: text encoder, denoiser and autoencoder, loaded from a checkpoint, ready to paint."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any, Literal, Self, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from diptych import __version__
from diptych.core import weights
from diptych.core.adapters import Adapters
from diptych.core.generation import Generation
from diptych.core.lora import Adapter
from diptych.core.machine_code import compile_beside
from diptych.core.mapped import recast
from diptych.core.precision import choose
from diptych.core.randomness import check_seed
from diptych.core.spelling import unknown
from diptych.core.together import libraries
from diptych.core.tokenizer import Tokenizer
from diptych.image import tiles
from diptych.image.autoencoder import Autoencoder, AutoencoderConfig
from diptych.image.condition import Condition
from diptych.image.denoiser import Denoiser
from diptych.image.encoders import EncoderConfig, TextEncoder
from diptych.image.guidance import Guidance
from diptych.image.networks import NETWORKS, kind_of, make_network
from diptych.image.path import Path, path_named
from diptych.image.photo import to_pixels
from diptych.image.prompts import OwnPrompter, Prompter
from diptych.image.record import ImageResult, ImageStep
from diptych.image.runner import ImageRequest, ImageRunner, Kit, Numbers
from diptych.image.start import Start
from diptych.image.validation import DenoisingLoss, denoising_loss, latents_of

SETTINGS = ("panel", "name", "size", "path", "prediction", "encoder", "autoencoder")


@dataclass(frozen=True)
class Habits:
    """What a model does where nothing is said."""

    steps: int = 30
    guidance_scale: float = 5.0
    sampler: str = "dpm++-2m"
    nodes: str | None = None


class ImageModel:
    """Paints pictures from prompts.

    Args:
        name: what traces, pictures and lists call it.
        prompter, network, autoencoder: the three parts; the first two may be in a fast dtype, the last is float32.
        path: the noise path, or from the size (h, w) of latents to it.
        prediction: what the network's output is, as `prediction_named` reads it.
        size: pixels of its pictures, a side or (height, width).
        habits: its settings where a request leaves them out.
        numbers: see `runner.Kit`.
        imitates_guidance: `guidance_scale` is told to the network, which has learnt what guidance does; true guidance,
            with a negative prompt, is asked for by `true_guidance_scale`.
        starts_whole: see `runner.Kit`.
    """

    panel: Literal["image"] = "image"

    def __init__(
        self,
        name: str,
        *,
        prompter: Prompter,
        network: nn.Module,
        autoencoder: Autoencoder,
        path: str | Callable[[tuple[int, int]], Path],
        size: int | tuple[int, int],
        prediction: str = "noise",
        habits: Habits | None = None,
        numbers: Numbers = lambda size, scale: (),
        imitates_guidance: bool = False,
        starts_whole: bool = False,
    ) -> None:
        self.name, self.prompter, self.network, self.autoencoder = name, prompter, network, autoencoder
        self.height, self.width = (size, size) if isinstance(size, int) else size
        self.habits, self.numbers, self.imitates_guidance = habits or Habits(), numbers, imitates_guidance
        self.starts_whole = starts_whole
        self.adapters = Adapters(nn.ModuleDict(self.parts), casts=True)
        self.path_of = _always(path_named(path)) if isinstance(path, str) else path
        self.multiple: int = network.multiple  # type: ignore[assignment]  # of latents' sides
        settings: Any = network.config
        channels, latent = int(settings.channels), autoencoder.config
        if channels != latent.latent_channels:
            raise ValueError(f"the network has {channels} channels, the autoencoder {latent.latent_channels}")
        self.latent_shape = (channels, self.height // latent.downsampling, self.width // latent.downsampling)
        self.path = self.path_of(self.latent_shape[1:])
        self.denoiser = Denoiser(network, prediction, self.path)

    @classmethod
    def load(cls, directory: str | FilePath, *, device: str | None = None, dtype: str | None = None) -> Self:
        """A checkpoint of the house.

        Raises:
            ValueError: a directory that is no whole image checkpoint, a device or dtype that is not here.
        """
        chosen_device, chosen_dtype = choose(device, dtype)
        config = weights.read_config(directory)
        kinds = [kind for kind in NETWORKS if kind in config]
        for key in config:
            if key not in (*SETTINGS, *NETWORKS):
                raise unknown("setting in config.json", key, (*SETTINGS, *NETWORKS))
        for key in SETTINGS:
            if key not in config:
                raise ValueError(f"'{directory}/config.json' lacks '{key}'")
        if len(kinds) != 1:
            raise ValueError(f"'{directory}/config.json' must have one network of {', '.join(NETWORKS)}, not {kinds}")
        if config["panel"] != "image":
            raise ValueError(f"'{directory}' is not an image checkpoint")
        with weights.outline():  # what is mapped from the file needs no room made for it
            encoder = TextEncoder(EncoderConfig.from_dict(config["encoder"]))
            network = make_network(kinds[0], config[kinds[0]])
            autoencoder = Autoencoder(AutoencoderConfig.from_dict(config["autoencoder"]))
        whole = nn.ModuleDict({"encoder": encoder, kinds[0]: network, "autoencoder": autoencoder})
        weights.adopt(whole, weights.iterate_tensors(directory), directory)
        whole.eval().requires_grad_(False).to(chosen_device)
        recast(encoder, dtype=torch.float32)
        recast(network, dtype=chosen_dtype, channels_last=True).to(dtype=chosen_dtype)  # tables of places, too
        recast(autoencoder, dtype=torch.float32, channels_last=True).float()  # shift and scale, too
        tokenizer = Tokenizer.load(FilePath(directory) / "tokenizer.json")
        model = cls(
            str(config["name"]),
            prompter=OwnPrompter(encoder, tokenizer),
            network=network,
            autoencoder=autoencoder,
            path=config["path"],
            prediction=config["prediction"],
            size=config["size"],
        )
        settings: Any = network.config
        if settings.context_width != encoder.config.width:
            raise ValueError(
                f"the network's context_width is {settings.context_width}, the text encoder's {encoder.config.width}"
            )
        return model

    def save(self, directory: str | FilePath, card: str | None = None, *, dtype: torch.dtype = torch.bfloat16) -> None:
        """Write a checkpoint directory, whole or not at all. `card` is the text of its README.md.

        Raises:
            ValueError: the model was not made here.
        """
        if not isinstance(self.prompter, OwnPrompter):
            raise ValueError(f"'{self.name}' is a model of others; it stays in the layout that it came in")
        kind, settings = kind_of(self.network), cast(Any, self.network.config)
        config = {
            "panel": "image",
            "name": self.name,
            "size": self.height,
            "path": self.path.name,
            "prediction": self.denoiser.prediction.name,
            "encoder": self.prompter.encoder.config.to_dict(),
            kind: settings.to_dict(),
            "autoencoder": self.autoencoder.config.to_dict(),
        }
        parts = {"encoder": self.prompter.encoder, kind: self.network, "autoencoder": self.autoencoder}
        tensors = {
            f"{part}.{name}": value.to(dtype)
            for part, module in parts.items()
            for name, value in module.state_dict().items()
        }
        weights.save(directory, config, tensors, tokenizer=self.prompter.tokenizer, card=card)

    def encode(self, prompts: Sequence[str], *, is_negative: bool = False, cuts: bool = False) -> Condition:
        """Prompts as the network sees them; see `prompts.Prompter`."""
        return self.prompter(prompts, is_negative=is_negative, cuts=cuts)

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) to pictures (B, 3, H, W), about -1..1, float32."""
        return tiles.decode(self.autoencoder, latents.to(next(self.autoencoder.parameters()).device))

    @torch.inference_mode()
    def compress(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, H, W), -1..1, to latents (B, C, h, w), float32."""
        return tiles.encode(self.autoencoder, pictures.to(next(self.autoencoder.parameters()).device))

    @property
    def parts(self) -> dict[str, nn.Module]:
        """What an adapter may stand beside: the network, and the text encoders by name."""
        return {"network": self.network, **self.prompter.modules}

    def add_adapter(self, name: str, adapter: Adapter) -> None:
        """Have an adapter for `parts` at hand; `use_adapter` puts it to use. Raises: ValueError for a name that is
        taken."""
        self.adapters.add(name, adapter)

    def use_adapter(self, which: str | Mapping[str, float] | None, strength: float = 1.0) -> None:
        """Paint with one of the adapters, with several, or with none, from the next picture on; see `Adapters.use`."""
        self.adapters.use(which, strength)

    def merge_adapter(self, name: str, strength: float = 1.0) -> None:
        """Add an adapter to the weights for good: as quick as the model itself, and no longer switchable."""
        self.adapters.merge(name, strength)

    def prepare(self) -> None:
        """Compile what painting needs, if that was never done on this machine: it takes seconds, which is better told
        before a picture begins than in its middle."""
        weight = next(self.network.parameters())
        compile_beside(libraries(weight.device, weight.dtype))

    def runner(self, weaker: "ImageModel | None" = None) -> ImageRunner:
        """A fresh runner over this model, for many requests at once.

        Args:
            weaker: another model over the same latents, whose estimate guidance moves away from.

        Raises:
            ValueError: its latents are others.
        """
        if weaker is not None and not self._shares_latents(weaker):
            raise ValueError(f"'{weaker.name}' paints other latents than '{self.name}' and cannot guide it")
        return ImageRunner(self._kit(weaker))

    def _shares_latents(self, other: "ImageModel") -> bool:
        """Whether the same picture is the same latent to both."""
        mine, theirs = self.autoencoder, other.autoencoder
        return mine.config == theirs.config and all(
            torch.equal(one.cpu(), two.cpu()) for one, two in zip(mine.buffers(), theirs.buffers(), strict=True)
        )

    def _kit(self, weaker: "ImageModel | None" = None) -> Kit:
        facts: dict[str, Any] = {"dtype": self.dtype, "version": __version__}
        facts |= {"adapters": self.adapters.in_use} if self.adapters.in_use else {}
        return Kit(
            self.denoiser,
            self.path_of,
            lambda prompts, is_negative: self.encode(prompts, is_negative=is_negative),
            self.decode,
            self.compress,
            channels=self.latent_shape[0],
            size=self.latent_shape[1:],
            downsampling=self.autoencoder.config.downsampling,
            multiple=self.multiple,
            numbers=self.numbers,
            starts_whole=self.starts_whole,
            words=self.prompter.words,
            weaker=None if weaker is None else weaker._kit(),
            name=self.name,
            facts=facts if weaker is None else facts | {"weaker": weaker.name},
        )

    @property
    def dtype(self) -> str:
        """Of the network: "bfloat16", ..."""
        return str(next(self.network.parameters()).dtype).removeprefix("torch.")

    def generate(
        self,
        prompt: str,
        *,
        negative_prompt: str = "",
        steps: int | None = None,
        guidance_scale: float | None = None,
        true_guidance_scale: float = 1.0,
        guidance_rescale: float = 0.0,
        guidance_interval: tuple[float, float | None] = Guidance.interval,
        guidance_threshold: float = 0.0,
        guidance_parallel: float = 1.0,
        guidance_limit: float = 0.0,
        guidance_momentum: float = 0.0,
        weaker: "ImageModel | None" = None,
        sampler: str | None = None,
        nodes: str | None = None,
        seed: int | None = None,
        count: int = 1,
        height: int | None = None,
        width: int | None = None,
        noise: Tensor | None = None,
        picture: Image.Image | None = None,
        strength: float | None = None,
        mask: Image.Image | None = None,
        turns: Sequence[tuple[int, float]] = (),
        to_prompt: str | None = None,
        to_seed: int | None = None,
        share: float = 0.0,
        first_sample: int = 0,
        words: bool = False,
    ) -> Generation[ImageStep, ImageResult]:
        """Paint a prompt: iterate for steps, or call `.result()`. See `ImageRequest` and `Guidance` for the settings.

        Args:
            steps, guidance_scale, sampler, nodes: None is the model's habit.
            true_guidance_scale: of guidance proper, in models that only imitate it.
            height, width: where only one is said, the other keeps the shape of `picture`, or is the model's own.
            picture: to begin from instead of static; see `start.Start` for the size that it takes.
            strength: 0..1, how much of it is painted anew; None is `start.STRENGTH`, but 1 where there is a mask.
            mask: white where it is painted anew, black or transparent where it stays as it is.
            words: keep which part of the picture each word was looked at from: `result.words`, `word_maps.WordMaps`.

        Raises:
            ValueError: for a setting out of its range, or a prompt that is empty or too long.
        """
        habits = self.habits
        scale = habits.guidance_scale if guidance_scale is None else guidance_scale
        guidance = Guidance(
            true_guidance_scale if self.imitates_guidance else scale,
            guidance_rescale,
            guidance_interval,
            guidance_threshold,
            guidance_parallel,
            guidance_limit,
            guidance_momentum,
        )
        if weaker is not None and negative_prompt:
            raise ValueError("guidance goes away either from negative_prompt or from weaker, not from both")
        start = Start.of(picture, mask, height, width, self)
        request = ImageRequest(
            prompt=prompt,
            negative_prompt=negative_prompt,
            steps=habits.steps if steps is None else steps,
            guidance=guidance,
            sampler=sampler or habits.sampler,
            nodes=nodes or (habits.nodes if sampler is None else None),
            seed=check_seed(seed),
            count=count,
            height=start.height,
            width=start.width,
            noise=noise,
            picture=start.pixels,
            strength=start.strength if strength is None else strength,
            mask=start.mask,
            turns=turns,
            to_prompt=to_prompt,
            to_seed=to_seed,
            share=share,
            told_scale=Guidance(scale).scale if self.imitates_guidance else None,
            first_sample=first_sample,
            words=words,
        )
        return Generation(self.runner(weaker), request)

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
        if pictures.shape[1:] != (3, self.height, self.width):
            height, width = pictures.shape[-2:]
            raise ValueError(
                f"'{self.name}' paints {self.width} x {self.height} pixels; these pictures are {width} x {height}"
            )
        clean = latents_of(self.autoencoder, pictures, batch)
        told = self.encode(captions).told(self.numbers((self.height, self.width), self.habits.guidance_scale))
        return denoising_loss(self.denoiser, clean, told, seed=seed, batch=batch)


def _always(path: Path) -> Callable[[tuple[int, int]], Path]:
    """The same path whatever the size of the latents."""
    return lambda size: path
