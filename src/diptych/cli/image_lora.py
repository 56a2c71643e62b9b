"""LoRA files on the command line: --lora FILE[:SCALE], as often as there are files."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.cli import UsageError

if TYPE_CHECKING:
    from diptych.image.model import ImageModel


def loras_of(words: Sequence[str]) -> dict[str, float]:
    """File, or folder -> scale. Raises: UsageError for a file that is not there, one named twice, or no number."""
    found: dict[str, float] = {}
    for word in words:
        file, colon, scale = word.rpartition(":")
        if not colon or Path(word).exists():
            file, scale = word, "1"
        try:
            number = float(scale)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise UsageError(f"--lora is FILE or FILE:SCALE with a finite number, not '{word}'")
        if not Path(file).exists():
            raise UsageError(f"there is no LoRA file at '{file}'")
        if file in found:
            raise UsageError(f"--lora names '{file}' twice; give it one scale")
        found[file] = number
    return found


def loras_again(before: Mapping[str, Any], like: Path) -> dict[str, float]:
    """Those that a picture was painted with. Raises: ValueError where its description is damaged."""
    adapters = before.get("adapters", {})
    if not isinstance(adapters, dict) or not all(isinstance(scale, int | float) for scale in adapters.values()):
        raise ValueError(f"'{like}' carries a damaged description of how it was made: its adapters")
    return loras_of([f"{file}:{scale}" for file, scale in adapters.items()])


def wear(painter: "ImageModel", loras: Mapping[str, float]) -> None:
    """Paint with these; the picture will say so by the names of their files."""
    from diptych.interop.lora import load_lora

    for file in loras:
        load_lora(painter, file, name=file)
    painter.use_adapter(loras)
