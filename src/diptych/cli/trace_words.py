"""`diptych trace words`: which part of the picture each word of the prompt was looked at from, step by step."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diptych.cli import UsageError, frame

if TYPE_CHECKING:
    from diptych.core.trace import Trace
    from diptych.image.word_maps import WordMaps

MOST_COLUMNS = 50


def words(
    file: Annotated[Path, typer.Argument(help="A trace that 'diptych image --trace' wrote.")],
    out: Annotated[Path | None, typer.Option(help="The picture to write (.png). [FILE-words.png]")] = None,
    word: Annotated[list[str] | None, typer.Option(help="A word to show; may be given several times. [all]")] = None,
    steps: Annotated[
        str | None, typer.Option(metavar="FIRST..LAST", help="The steps that count, from 1. [all]")
    ] = None,
    columns: Annotated[int, typer.Option(help="Steps to show, evenly spread over those that count.")] = 6,
    sample: Annotated[int, typer.Option(help="Which picture of 'image -n', from 1.")] = 1,
    json: Annotated[bool, typer.Option("--json", help="Numbers instead: one JSON object a line, by word.")] = False,
) -> None:
    """Show where in the picture each word of the prompt was looked at from: a row a word, a column a step."""
    if not 1 <= columns <= MOST_COLUMNS:
        raise UsageError(f"columns must be from 1 to {MOST_COLUMNS}, not {columns}")
    if out is None and not json:
        out = file.with_name(f"{file.stem}-words.png")
    out = frame.output(out, ".png")
    from diptych.core.trace import Trace
    from diptych.image.word_maps import WordMaps, figures

    recorded = Trace.load(file)
    try:
        maps = WordMaps.of(recorded)
    except ValueError as error:
        raise ValueError(f"'{file}' {error}") from error
    with frame.settings():
        places = maps.places(word or [])
    counted, count = _counted(steps, len(recorded)), maps.maps.shape[1]
    if not 1 <= sample <= count:
        raise UsageError(f"sample must be from 1 to {count}, the pictures in '{file}', not {sample}")
    if json:
        about = {"words": list(maps.words), "grid": list(maps.maps.shape[-2:]), "sample": sample}
        frame.json_line({"type": "words", "prompt": recorded.settings.get("prompt"), **about})
        for place in places:
            for row in figures(maps, place, sample - 1, counted):
                frame.json_line(row)
    if out is not None:
        _draw(recorded, maps, file, out, places, counted, frame.spread(counted, columns), sample - 1)
        if not json:
            shown = (
                f"{len(places)} word{'s' * (len(places) != 1)}, {min(columns, len(counted))} of {len(recorded)} steps"
            )
            print(f"{out}: {shown} and their mean")


def _draw(
    recorded: "Trace",
    maps: "WordMaps",
    file: Path,
    out: Path,
    places: list[int],
    counted: range,
    columns: list[int],
    sample: int,
) -> None:
    from diptych.image.film import save_strip
    from diptych.image.word_sheet import word_sheet

    previews = recorded.arrays.get("preview")
    if previews is None or previews.shape[:2] != maps.maps.shape[:2] or previews.shape[2:3] != (3,):
        raise ValueError(f"'{file}' holds no pictures to lay the maps over; --json gives their numbers")
    try:
        captions = [frame.step_caption(recorded.facts, index) for index in columns]
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ValueError(f"'{file}' is not a whole trace: its steps do not say their noise") from error
    captions.append(["mean", f"steps {counted.start + 1} to {counted.stop}"])
    sheet = word_sheet(maps, previews, captions, places=places, steps=counted, columns=columns, sample=sample)
    save_strip(sheet, out)


def _counted(steps: str | None, total: int) -> range:
    """ "5..20" is the fifth to the twentieth; "7" is one step."""
    if steps is None:
        return range(total)
    found = re.fullmatch(r"\s*(\d{1,9})\s*(?:\.\.\s*(\d{1,9})\s*)?", steps)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if not 1 <= first <= last <= total:
        raise UsageError(f"steps must be FIRST..LAST within 1..{total}, not '{steps}'")
    return range(first - 1, last)
