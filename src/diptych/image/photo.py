"""Pictures in and out: files checked at the door, PIL to tensors in -1..1 and back."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from diptych.core.files import atomic_file, output_path

LARGEST_PIXELS = 89_478_485  # Pillow's own bound: a small file that unfolds to more is a trap
ORIENTATION, DESCRIPTION = 0x0112, 0x010E  # of EXIF; orientations 5 to 8 lie on their side


def open_picture(path: str | Path, ground: str = "white") -> Image.Image:
    """An RGB picture from a file, turned as its camera says, on a ground of one colour where it is transparent.

    Raises:
        ValueError: missing, not a picture, damaged, or more than LARGEST_PIXELS.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no picture at '{path}'")
    with path.open("rb") as file:
        try:
            return decode_picture(file, ground)
        except ValueError as error:
            raise ValueError(f"'{path}' {error}") from error


def decode_picture(file: BinaryIO, ground: str = "white") -> Image.Image:
    """An RGB picture from an open file, as `upright_on` makes it; the first picture of an animation.

    Raises:
        ValueError: what is wrong with it, to be said after its name.
    """
    with _opened(file) as opened:
        opened.load()
        return upright_on(opened, ground)


def upright_on(picture: Image.Image, ground: str) -> Image.Image:
    """A picture as RGB: turned as its camera says, on a ground of one colour where it is transparent, 16 bits of grey
    scaled to 8.

    Raises:
        ValueError: grey values of no known range.
    """
    upright = ImageOps.exif_transpose(picture)
    if upright.mode.startswith("I"):  # convert() would cut off at 255
        values = np.asarray(upright)
        if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
            raise ValueError("its grey values are neither of 8 nor of 16 bits")
        return Image.fromarray((values / 257).round().astype(np.uint8)).convert("RGB")
    if upright.mode == "F":
        raise ValueError("its grey values are fractions of no known range")
    if upright.has_transparency_data:
        clear = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", clear.size, ground), clear)
    return upright.convert("RGB")


def picture_size(file: BinaryIO) -> tuple[int, int]:
    """(width, height) of the upright picture in an open file, from its head alone.

    Raises:
        ValueError: what is wrong with it, to be said after its name.
    """
    with _opened(file) as opened:
        if opened.format == "TIFF":  # whose size Pillow gives upright
            return opened.size
        # Not opened.getexif(): a PNG would be decoded for what may stand behind its pixels.
        is_on_its_side = Image.Image.getexif(opened).get(ORIENTATION) in (5, 6, 7, 8)
        return (opened.height, opened.width) if is_on_its_side else opened.size


@contextmanager
def _opened(file: BinaryIO) -> Iterator[Image.Image]:
    """A picture whose size is allowed; whatever a decoder raises over strangers' bytes becomes a ValueError."""
    width = height = 0
    try:
        with Image.open(file) as opened:
            width, height = opened.size
            if width * height <= LARGEST_PIXELS:
                yield opened
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"has too many pixels; at most {LARGEST_PIXELS} are read") from error
    except Exception as error:
        reason = "unknown format" if isinstance(error, UnidentifiedImageError) else (str(error) or repr(error))
        raise ValueError(f"is not a picture that can be read: {reason.splitlines()[0]}") from error
    if width * height > LARGEST_PIXELS:
        raise ValueError(f"has {width} x {height} pixels; at most {LARGEST_PIXELS} are read")


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


def facts_beside(facts: dict[str, Any], format: str) -> dict[str, Any]:
    """Arguments of Pillow's `save` that put `facts` into a "GIF" (its comment) or a "WEBP" (the description of its
    EXIF)."""
    text = json.dumps({"diptych": facts})
    if format == "GIF":
        return {"comment": text.encode()}
    exif = Image.Exif()
    exif[DESCRIPTION] = text
    return {"exif": exif}


def _facts_of(opened: Image.Image) -> str | None:
    """The JSON that `save_png` or `facts_beside` wrote; None where there is none."""
    if opened.format == "PNG":
        return getattr(opened, "text", {}).get("diptych")
    found = opened.info.get("comment", b"") if opened.format == "GIF" else opened.getexif().get(DESCRIPTION, "")
    text = found.decode("utf-8", "replace") if isinstance(found, bytes) else str(found)
    if not text.startswith('{"diptych": '):
        return None
    return text.removeprefix('{"diptych": ').rstrip("\0").removesuffix("}")


def read_facts(path: str | Path) -> dict[str, Any]:
    """How a picture of ours was made, from its metadata.

    Raises:
        ValueError: not a picture, or one that carries nothing of ours.
    """
    path = Path(path)
    open_picture(path)
    with Image.open(path) as opened:
        text = _facts_of(opened)
    if text is None:
        raise ValueError(f"'{path}' does not say how it was made; only pictures that diptych painted carry that")
    try:
        facts = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"'{path}' carries a damaged description of how it was made") from error
    if not isinstance(facts, dict):
        raise ValueError(f"'{path}' carries a damaged description of how it was made")
    return facts
