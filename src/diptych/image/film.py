"""Filmstrips: a generation, or a photo turning into static, as one wide picture; and the same as a moving one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from diptych.core.files import atomic_directory, atomic_file, output_path
from diptych.image.photo import facts_beside, save_png

BACKGROUND, INK, FAINT = (250, 249, 246), (32, 32, 36), (110, 110, 116)
SMALLEST = 144  # pixels of a picture's width below which it is enlarged, so that what stands under it can be read
FONT, GAP, MARGIN = 15, 10, 16


def filmstrip(
    rows: Sequence[Sequence[Image.Image]], captions: Sequence[Sequence[str]], names: Sequence[str] = ()
) -> Image.Image:
    """Pictures side by side with a few lines under each.

    Args:
        rows: of equally many pictures, all of one size.
        captions: the lines under each column; the first line is the heading.
        names: what each row shows, written over it; none for a single row.
    """
    font = ImageFont.load_default(size=FONT)
    width, height = shown_size(rows[0][0])
    widest = max(font.getlength(line) for lines in captions for line in lines)
    column = max(width, round(widest))
    line_height = FONT + 5
    name_height = line_height if names else 0
    total_width = 2 * MARGIN + len(rows[0]) * column + (len(rows[0]) - 1) * GAP
    caption_height = line_height * max(map(len, captions))
    total_height = 2 * MARGIN + len(rows) * (name_height + height + GAP) + caption_height
    strip = Image.new("RGB", (total_width, total_height), BACKGROUND)
    drawing = ImageDraw.Draw(strip)
    top = MARGIN
    for number, row in enumerate(rows):
        if names:
            drawing.text((MARGIN, top), names[number], fill=FAINT, font=font)
            top += name_height
        for place, picture in enumerate(row):
            left = MARGIN + place * (column + GAP) + (column - width) // 2
            strip.paste(shown(picture, (width, height)), (left, top))
        top += height + GAP
    for place, lines in enumerate(captions):
        middle = MARGIN + place * (column + GAP) + column / 2
        for number, line in enumerate(lines):
            where = (middle, top + number * line_height)
            drawing.text(where, line, fill=INK if number == 0 else FAINT, font=font, anchor="ma")
    return strip


def side_by_side(rows: Sequence[Sequence[Image.Image]]) -> list[Image.Image]:
    """The columns of a filmstrip as frames of a moving picture, the rows from left to right."""
    width, height = shown_size(rows[0][0])
    frames = []
    for column in zip(*rows, strict=True):
        joined = Image.new("RGB", (len(rows) * width + (len(rows) - 1) * GAP, height), BACKGROUND)
        for place, picture in enumerate(column):
            joined.paste(shown(picture, (width, height)), (place * (width + GAP), 0))
        frames.append(joined)
    return frames


def save_strip(strip: Image.Image, path: str | Path) -> None:
    with atomic_file(output_path(path)) as temporary, temporary.open("wb") as file:
        strip.save(file, format="PNG")


def save_moving(
    frames: Sequence[Image.Image],
    path: str | Path,
    *,
    milliseconds: int = 150,
    rest: int = 2000,
    facts: dict[str, Any] | None = None,
) -> None:
    """An animated WebP, or a GIF (256 colours a frame) where the path ends so; it repeats for ever.

    Args:
        milliseconds: of each frame; the last one, the finished picture, stays for `rest`.
        facts: how it was made, for `photo.read_facts`.
    """
    path = output_path(path)
    settings: dict[str, Any] = {"duration": [milliseconds] * (len(frames) - 1) + [rest], "loop": 0, "save_all": True}
    if path.suffix.lower() == ".gif":
        settings |= {"format": "GIF", "disposal": 1}
        frames = [frame.convert("RGB").quantize(256, Image.Quantize.MEDIANCUT) for frame in frames]
    else:
        settings |= {"format": "WEBP", "quality": 90}
    if facts is not None:
        settings |= facts_beside(facts, settings["format"])
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        frames[0].save(file, append_images=list(frames[1:]), **settings)


def save_frames(
    frames: Sequence[Image.Image], folder: str | Path, facts: Sequence[dict[str, Any]], first: int = 1
) -> list[Path]:
    """PNGs 0001.png, ... in a folder that is not there yet, or is empty; whole or not at all. Their sides are even, as
    the makers of MP4 want them: an odd one loses its last pixel.

    Raises:
        ValueError: a folder that holds something.
    """
    folder = free_folder(folder)
    names = [f"{number:04}.png" for number in range(first, first + len(frames))]
    with atomic_directory(folder) as temporary:
        for frame, about, name in zip(frames, facts, names, strict=True):
            save_png(frame.crop((0, 0, frame.width // 2 * 2, frame.height // 2 * 2)), temporary / name, about)
    return [folder / name for name in names]


def free_folder(folder: str | Path) -> Path:
    """Raises: ValueError for a folder that holds something, or that cannot be made."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"'{folder}' is not empty; name a folder that is not there yet")
    if not folder.absolute().parent.is_dir():
        raise ValueError(f"the output folder '{folder.parent}' does not exist; create it or choose another")
    return folder


def shown_size(picture: Image.Image) -> tuple[int, int]:
    """Small pictures are enlarged by a whole number, so that every pixel stays a square."""
    factor = max(1, -(-SMALLEST // picture.width))
    return picture.width * factor, picture.height * factor


def shown(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    shown = picture.convert("RGB")
    return shown if shown.size == size else shown.resize(size, Image.Resampling.NEAREST)


def wrapped(text: str, font: Any, width: float) -> list[str]:
    """Lines that are no wider, cut at spaces."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
