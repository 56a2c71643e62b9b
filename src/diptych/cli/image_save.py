"""Names of painted files, and writing them: each whole or not at all."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.cli import frame

if TYPE_CHECKING:
    from PIL import Image


def stem(settings: dict[str, Any]) -> str:
    """A file name from the prompt: "a cat, at sunset" with seed 7 is a-cat-at-sunset-7."""
    words = re.sub(r"[^a-z0-9]+", "-", settings["prompt"].lower()).strip("-")[:60].rstrip("-")
    return f"{words or 'picture'}-{settings['seed']}"


def save(images: "list[Image.Image]", facts: list[dict[str, Any]], out: Path | None) -> list[Path]:
    """Write the pictures, each with how it was made; after Ctrl-C those already written are named."""
    from diptych.image.photo import save_png

    endings = [".png"] if len(images) == 1 else [f"-{number}.png" for number in range(1, len(images) + 1)]
    name = str(out.with_suffix("")) if out else frame.unused(stem(facts[0]), *endings)
    written: list[Path] = []
    try:
        for image, about, ending in zip(images, facts, endings, strict=True):
            path = Path(name + ending)
            save_png(image, path, about)
            written.append(path)
    except KeyboardInterrupt:
        names = ", ".join(map(str, written))
        raise KeyboardInterrupt(f"interrupted; written: {names}" if names else "") from None
    return written


def described(image: "Image.Image", settings: dict[str, Any], count: int) -> str:
    """A line about pictures: their size and what they were painted with."""
    size = (
        f"{image.width} x {image.height}, seed {settings['seed']}, {settings['steps']} steps of {settings['sampler']}"
    )
    return size if count == 1 else f"{count} pictures, each {size}"
