"""The run's figures and samples for TensorBoard, beside metrics.jsonl; it comes with the extra `diptych[train]`.

Look at them with `tensorboard --logdir runs`.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
from PIL import Image

from diptych.train.samples import BORDER

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"  # in the run directory


def require_tensorboard() -> None:
    """Fail at the door, before data is read, if the package is missing.

    Raises:
        ValueError: in one line that says what to install.
    """
    _writer_class()


def _writer_class() -> "type[SummaryWriter]":
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of packages that tensorboard looks for and does not need
            from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(
            "run.tensorboard needs the package tensorboard: pip install 'diptych[train]', or set run.tensorboard=false"
        ) from error
    return SummaryWriter


class Board:
    """Event files of one run, in its folder `tensorboard`.

    A run that goes on from step `first` says so in its new file: what an older one holds of later steps is made again
    and disappears from the curves (`purge_step`).

    Args:
        run: the run directory.
        first: steps done when it begins; 0 for a fresh run.
    """

    def __init__(self, run: Path, first: int = 0) -> None:
        self._writer = _writer_class()(str(run / FOLDER), purge_step=first + 1)

    def log(self, line: Mapping[str, float]) -> None:
        """Every figure of a line of metrics, at its step.

        Validation figures keep their names; the others stand under "train/".
        """
        step = int(line["step"])
        for name, value in line.items():
            if name != "step" and isinstance(value, int | float):
                tag = name if "/" in name else f"train/{name}"
                self._writer.add_scalar(tag, value, step)

    def log_samples(self, directory: Path, step: int) -> None:
        """What a step sampled into a folder: its picture as an image, its texts as text."""
        picture, texts = (directory / f"step-{step:08d}{ending}" for ending in (".png", ".txt"))
        if picture.is_file():
            with Image.open(picture) as opened:
                pixels = np.asarray(opened.convert("RGB"))
            self._writer.add_image("samples", pixels, step, dataformats="HWC")
        if texts.is_file():
            for place, text in enumerate(texts.read_text(encoding="utf-8").strip("\n").split(BORDER)):
                shown = "\n".join(f"    {line}" for line in text.splitlines())  # as it is, not read as Markdown
                self._writer.add_text(f"samples/{place + 1}", shown, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
