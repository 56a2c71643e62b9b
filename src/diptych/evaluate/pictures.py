"""How well networks of the image panel do on pictures that they did not learn from.

The functions that measure are those that training validates with, and "scenes" are the very pictures that validate the
recipes here, so both give the same figures for the same weights.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from diptych.core.precision import choose
from diptych.core.weights import read_config
from diptych.data import scenes
from diptych.data.captioned import Captioned, captioned, validation_scenes
from diptych.data.pairs import scene_questions
from diptych.data.pictures import open_pictures
from diptych.data.rendered import SceneData
from diptych.data.trouble import Troubles
from diptych.image.autoencoder import trained_autoencoder
from diptych.image.matching import Matching, measure_matching
from diptych.image.model import ImageModel
from diptych.image.pairing import PairingModel
from diptych.image.validation import DenoisingLoss, Fidelity, fidelity

SCENES = "scenes"


@dataclass(frozen=True)
class PictureReport:
    """Args:
    loss: of a painter; fidelity: of an autoencoder, a painter's too; matching: of a pairing.
    skipped: what could not be read, in one line; "" where all could.
    """

    model: str
    on: str
    dtype: str
    num_pictures: int
    skipped: str = ""
    loss: DenoisingLoss | None = None
    fidelity: Fidelity | None = None
    matching: Matching | None = None

    def to_dict(self) -> dict[str, Any]:
        parts = {"noise_loss": self.loss, "autoencoder": self.fidelity, "pairing": self.matching}
        return {
            "model": self.model,
            "on": self.on,
            "dtype": self.dtype,
            "pictures": self.num_pictures,
            "skipped": self.skipped,
            **{name: part.to_dict() for name, part in parts.items() if part},
        }


def pictures_of(on: str, size: int) -> tuple[Captioned, list[scenes.Scene] | None, str]:
    """The pictures to measure on, the truth of scenes, and what was skipped.

    Raises:
        ValueError: as `validation_scenes` or `open_pictures`.
    """
    if on == SCENES:
        return *validation_scenes(SceneData(size=size)), ""
    troubles = Troubles()
    return captioned(open_pictures(on, troubles=troubles), size, troubles), None, str(troubles)


def evaluate_painter(model: ImageModel, on: str) -> PictureReport:
    """The denoising loss by noise level, and what its autoencoder keeps of the pictures."""
    found, _, skipped = pictures_of(on, model.height)
    loss = model.noise_loss(found.pictures, found.captions)
    kept = fidelity(model.autoencoder, found.pictures)
    return PictureReport(model.name, on, model.dtype, len(found.pictures), skipped, loss=loss, fidelity=kept)


def evaluate_autoencoder(directory: str | Path, on: str, *, device: str | None = None) -> PictureReport:
    """PSNR and SSIM of pictures written down and read back, in float32.

    Raises:
        ValueError: not an autoencoder's checkpoint, pictures smaller than SSIM's window, or as `pictures_of`.
    """
    config = read_config(directory)
    autoencoder = trained_autoencoder(directory)
    autoencoder.to(choose(device)[0], memory_format=torch.channels_last)  # type: ignore[call-overload]
    found, _, skipped = pictures_of(on, int(config.get("size", SceneData.size)))
    name = str(config.get("name", Path(directory).name))
    kept = fidelity(autoencoder, found.pictures)
    return PictureReport(name, on, "float32", len(found.pictures), skipped, fidelity=kept)


def evaluate_pairing(model: PairingModel, on: str) -> PictureReport:
    """Retrieval of captions and pictures, in float32; of scenes also zero-shot classification.

    Raises:
        ValueError: a picture has no caption, or as `pictures_of`.
    """
    size = SceneData.size if on == SCENES else model.network.config.size
    found, truth, skipped = pictures_of(on, size)
    if not all(found.captions):
        raise ValueError(f"'{on}' has pictures without a caption: each needs a .txt file of its name beside it")
    questions = scene_questions(truth) if truth else ({}, {})
    matching = measure_matching(model, found.pictures, found.captions, *questions)
    return PictureReport(model.name, on, "float32", len(found.pictures), skipped, matching=matching)
