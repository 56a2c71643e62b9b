"""The record of painting: its steps, the finished pictures, and the trace that replays them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from diptych.core.trace import Trace, stack
from diptych.image.photo import to_bytes, to_picture
from diptych.image.word_maps import WordMaps

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
        words: (count, words, h, w), float16, where the request asks for them: see `word_maps.WordMaps`.
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
    words: Tensor | None = None

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
        prompt_words: of the maps that were asked for.
    """

    images: list[Image.Image]
    latents: Tensor
    seed: int
    settings: dict[str, Any]
    steps: list[ImageStep]
    model: str
    prompt_words: tuple[str, ...] = ()

    @property
    def image(self) -> Image.Image:
        return self.images[0]

    @property
    def words(self) -> WordMaps | None:
        """Which part of the picture each word was looked at from; None where that was not asked for, or where the
        network looks at no words."""
        maps = [step.words for step in self.steps if step.words is not None]
        return WordMaps(self.prompt_words, torch.stack(maps)) if maps else None

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
        settings, words = self.settings, self.words
        if words is not None:
            arrays["words"], settings = words.maps, settings | {"words": list(words.words)}
        return Trace("image", self.model, settings, arrays, facts)
