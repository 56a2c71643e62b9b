"""What a run made on the way, from the same prompts and seeds at every time, laid side by side.

A task writes its samples with `save_pictures` or `save_texts`; `contact_sheet` and `page` show the same prompts across
the training, and `refresh` keeps both up to date in the run's folder of samples:

step-XXXXXXXX.png   the prompts' pictures as a grid
step-XXXXXXXX.txt   the prompts' texts, with "---" between them
prompts.json        the prompts, in that order, and the columns of the grid
sheet.png, page.md  made of all of them
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from diptych.core.files import atomic_file, write_atomically
from diptych.image.film import BACKGROUND, FAINT, INK, wrapped
from diptych.train.history import Line, read_metrics, samples

SHEET, PAGE, PROMPTS = "sheet.png", "page.md", "prompts.json"
BORDER = "\n\n---\n\n"
MOST = 12  # rows of a sheet, times of a page: of more, the first, the last and some evenly between
WIDEST = 1680  # pixels of a sheet
TILE = 192  # pixels of a picture at most, unless it is larger itself
FONT, GAP, MARGIN, GUTTER = 16, 6, 18, 108


def save_pictures(directory: Path, step: int, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> None:
    """Write the pictures of a step, all of one size, as one grid; `prompts` says what each shows."""
    if not pictures or len(pictures) != len(prompts) or len({picture.size for picture in pictures}) > 1:
        raise ValueError(f"{len(pictures)} pictures of one size and as many prompts are needed, not {len(prompts)}")
    columns = min(len(pictures), 4)
    width, height = pictures[0].size
    grid = Image.new("RGB", (columns * width, -(-len(pictures) // columns) * height))
    for place, picture in enumerate(pictures):
        grid.paste(picture.convert("RGB"), (place % columns * width, place // columns * height))
    _save_prompts(directory, {"prompts": list(prompts), "columns": columns})
    save_sheet(grid, directory / f"step-{step:08d}.png")


def save_texts(directory: Path, step: int, texts: Sequence[str], prompts: Sequence[str]) -> None:
    """Write the texts of a step, each with its prompt at the beginning."""
    if not texts or len(texts) != len(prompts):
        raise ValueError(f"{len(texts)} texts need as many prompts, not {len(prompts)}")
    _save_prompts(directory, {"prompts": list(prompts)})
    write_atomically(directory / f"step-{step:08d}.txt", (BORDER.join(texts) + "\n").encode())


def refresh(directory: Path) -> list[Path]:
    """Make sheet.png and page.md anew from what lies in a folder of samples; the files that were written."""
    written = []
    sheet = contact_sheet(directory)
    if sheet is not None:
        save_sheet(sheet, directory / SHEET)
        written.append(directory / SHEET)
    text = page(directory)
    if text:
        write_atomically(directory / PAGE, text.encode())
        written.append(directory / PAGE)
    return written


def contact_sheet(directory: Path) -> Image.Image | None:
    """One row a time of the training, one column a prompt; None if there are no pictures.

    Each row is labelled with its step and the loss there. A picture file that cannot be read is left out; one whose
    grid is not known stands in its row as a whole.
    """
    about = _prompts(directory)
    rows = []
    for step, file in _spread(samples(directory, ".png")):
        try:
            with Image.open(file) as opened:
                rows.append((step, _tiles(opened.convert("RGB"), about)))
        except (OSError, ValueError, Image.DecompressionBombError):
            continue
    if not rows:
        return None
    columns = max(len(tiles) for _, tiles in rows)
    prompts = about["prompts"] if columns == len(about["prompts"]) else []
    largest = max((tile.size for _, tiles in rows for tile in tiles), key=lambda size: size[0])
    room = (WIDEST - 2 * MARGIN - GUTTER - (columns - 1) * GAP) // columns
    width = max(1, min(room, max(largest[0], TILE)))
    height = max(1, round(width * largest[1] / largest[0]))
    font = ImageFont.load_default(size=FONT)
    heading = [_heading(prompt, font, width, 4) for prompt in prompts]
    top = MARGIN + max((len(lines) for lines in heading), default=0) * (FONT + 4) + (8 if heading else 0)
    left = MARGIN + GUTTER
    size = (left + columns * (width + GAP) - GAP + MARGIN, top + len(rows) * (height + GAP) - GAP + MARGIN)
    sheet = Image.new("RGB", size, BACKGROUND)
    drawing = ImageDraw.Draw(sheet)
    for column, lines in enumerate(heading):
        middle = left + column * (width + GAP) + width / 2
        for number, line in enumerate(reversed(lines)):
            drawing.text((middle, top - 10 - number * (FONT + 4)), line, fill=INK, font=font, anchor="ms")
    losses = _losses(directory)
    for number, (step, tiles) in enumerate(rows):
        upper = top + number * (height + GAP)
        drawing.text((MARGIN, upper + height / 2 - 9), f"step {step:,}", fill=INK, font=font, anchor="lm")
        if (loss := _loss_at(losses, step)) is not None:
            drawing.text((MARGIN, upper + height / 2 + 11), f"loss {loss:.3g}", fill=FAINT, font=font, anchor="lm")
        for column, tile in enumerate(tiles):
            shown = tile.resize((width, height), Image.Resampling.LANCZOS)
            sheet.paste(shown, (left + column * (width + GAP), upper))
    return sheet


def page(directory: Path) -> str:
    """For each prompt what the model wrote at each step, as Markdown; "" if there are no texts."""
    about = _prompts(directory)
    times = []
    for step, file in _spread(samples(directory, ".txt")):
        try:
            text = file.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        times.append((step, text.strip("\n").split(BORDER)))
    if not times:
        return ""
    count = max(len(pieces) for _, pieces in times)
    prompts = about["prompts"] if len(about["prompts"]) == count else [""] * count
    losses = _losses(directory)
    parts = ["# The same prompts across the training"]
    for place, prompt in enumerate(prompts):
        parts.append(f"## {_escaped(' '.join(prompt.split())) or f'Prompt {place + 1}'}")
        for step, pieces in times:
            if place < len(pieces):
                loss = _loss_at(losses, step)
                said = "" if loss is None else f", loss {loss:.3g}"
                parts.append(f"Step {step:,}{said}\n\n{_quoted(pieces[place], prompt)}")
    return "\n\n".join(parts) + "\n"


def _tiles(grid: Image.Image, about: dict[str, Any]) -> list[Image.Image]:
    """The pictures of a grid, row after row."""
    count, columns = len(about["prompts"]), about["columns"]
    rows = -(-count // columns)
    if not count or grid.width % columns or grid.height % rows:
        return [grid]
    width, height = grid.width // columns, grid.height // rows
    corners = [(place % columns * width, place // columns * height) for place in range(count)]
    return [grid.crop((x, y, x + width, y + height)) for x, y in corners]


def _prompts(directory: Path) -> dict[str, Any]:
    """prompts.json, or nothing of it if it is missing or damaged."""
    try:
        about = json.loads((directory / PROMPTS).read_bytes())
        prompts, columns = about["prompts"], about.get("columns", 1)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {"prompts": [], "columns": 1}
    is_right = isinstance(prompts, list) and all(isinstance(prompt, str) for prompt in prompts)
    is_right = is_right and isinstance(columns, int) and 1 <= columns <= max(1, len(prompts))
    return {"prompts": prompts, "columns": columns} if is_right else {"prompts": [], "columns": 1}


def _save_prompts(directory: Path, about: dict[str, Any]) -> None:
    text = json.dumps(about, indent=2, ensure_ascii=False) + "\n"
    path = directory / PROMPTS
    if not path.is_file() or path.read_bytes() != text.encode():
        write_atomically(path, text.encode())


def save_sheet(picture: Image.Image, path: Path) -> None:
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        picture.save(file, format="PNG")


def _spread(times: list[tuple[int, Path]]) -> list[tuple[int, Path]]:
    """At most `MOST` of them, with the first and the last."""
    if len(times) <= MOST:
        return times
    return [times[round(place * (len(times) - 1) / (MOST - 1))] for place in range(MOST)]


def _losses(directory: Path) -> list[Line]:
    """The training lines of the run that the samples belong to."""
    return [line for line in read_metrics(directory.parent / "metrics.jsonl") if "loss" in line]


def _loss_at(lines: list[Line], step: int) -> float | None:
    """The mean training loss of the ten log points that end at a step."""
    values = [line["loss"] for line in lines if line["step"] <= step][-10:]
    return sum(values) / len(values) if values else None


def _heading(prompt: str, font: Any, width: int, most: int) -> list[str]:
    """Lines no wider than `width` pixels; what does not fit into `most` of them ends in "…"."""
    lines = wrapped(prompt, font, width)
    if len(lines) > most:
        lines = [*lines[: most - 1], f"{lines[most - 1]} …"]
    return [_cut(line, font, width) for line in lines]


def _cut(line: str, font: Any, width: int) -> str:
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(f"{line}…") > width:
        line = line[:-1]
    return f"{line.rstrip()}…"


def _quoted(text: str, prompt: str) -> str:
    """A block quote in which the prompt is bold; what a model wrote is never read as Markdown, nor as code for its
    leading spaces."""
    is_continued = bool(prompt) and text.startswith(prompt) and prompt == prompt.strip() and "\n" not in prompt
    rest = text[len(prompt) :] if is_continued else text
    shown = (f"**{_escaped(prompt)}**" if is_continued else "") + _escaped(rest)
    lines = [line.strip() for line in shown.splitlines()]
    ends = [
        "" if not line or after in (None, "") else "\\" for line, after in zip(lines, [*lines[1:], None], strict=True)
    ]
    return "\n".join(f"> {line}{end}".rstrip() for line, end in zip(lines, ends, strict=True))


def _escaped(text: str) -> str:
    text = "".join(letter if letter.isprintable() or letter == "\n" else " " for letter in text)
    text = re.sub(r"([\\`*_\[\]<>#|~&$])", r"\\\1", text)
    return re.sub(r"^([ ]*)(\d+(?=[.)])|[-+=])", _escaped_start, text, flags=re.MULTILINE)


def _escaped_start(match: re.Match[str]) -> str:
    """What would begin a list or a line across: "1." and "-"."""
    return f"{match[1]}{match[2]}\\" if match[2].isdigit() else f"{match[1]}\\{match[2]}"
