"""Pictures in and out: files checked at the door, PIL to tensors in -1..1 and back."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from diptych.core.files import atomic_file, output_path

LARGEST_PIXELS = 100_000_000


def open_picture(path: str | Path) -> Image.Image:
    """An RGB picture from a file, turned as its camera says.

    Raises:
        ValueError: missing, not a picture, damaged, or more than LARGEST_PIXELS.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no picture at '{path}'")
    try:
        with Image.open(path) as opened:
            if opened.width * opened.height > LARGEST_PIXELS:
                raise ValueError(
                    f"'{path}' has {opened.width} x {opened.height} pixels; at most {LARGEST_PIXELS} are read"
                )
            opened.load()
            upright = ImageOps.exif_transpose(opened)
            if "A" in upright.getbands() or "transparency" in upright.info:
                clear = upright.convert("RGBA")
                upright = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear)
            return upright.convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"'{path}' is not a picture that can be read: {str(error).splitlines()[0]}") from error


def to_tensor(picture: Image.Image) -> Tensor:
    """(3, H, W), float32, -1..1."""
    array = np.asarray(picture.convert("RGB"), dtype=np.float32)
    return torch.from_numpy(array / 127.5 - 1).permute(2, 0, 1)


def to_pixels(pictures: Sequence[Image.Image]) -> np.ndarray:
    """Pictures of one size, at least one, as (N, 3, H, W), uint8."""
    return np.stack([np.asarray(picture.convert("RGB"), dtype=np.uint8).transpose(2, 0, 1) for picture in pictures])


def to_bytes(pictures: Tensor) -> Tensor:
    """(..., 3, H, W) in -1..1 to uint8, rounded, values outside cut off."""
    return ((pictures.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def to_picture(tensor: Tensor) -> Image.Image:
    """(3, H, W), float in -1..1 or uint8, to PIL."""
    values = tensor if tensor.dtype == torch.uint8 else to_bytes(tensor)
    return Image.fromarray(values.permute(1, 2, 0).cpu().numpy())


def save_png(picture: Image.Image, path: str | Path, facts: dict[str, Any]) -> None:
    """A PNG that carries how it was made, as JSON in its text chunk `diptych`."""
    path = output_path(path)
    chunk = PngImagePlugin.PngInfo()
    chunk.add_itxt("diptych", json.dumps(facts, ensure_ascii=False))
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        picture.save(file, format="PNG", pnginfo=chunk)


def read_facts(path: str | Path) -> dict[str, Any]:
    """How a picture of ours was made, from its metadata.

    Raises:
        ValueError: not a picture, or one that carries nothing of ours.
    """
    path = Path(path)
    open_picture(path)
    with Image.open(path) as opened:
        text = getattr(opened, "text", {}).get("diptych")
    if text is None:
        raise ValueError(f"'{path}' does not say how it was made; only PNGs that diptych painted carry that")
    try:
        facts = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"'{path}' carries a damaged description of how it was made") from error
    if not isinstance(facts, dict):
        raise ValueError(f"'{path}' carries a damaged description of how it was made")
    return facts
