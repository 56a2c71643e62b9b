"""From the options of `diptych image` to the settings of a picture, under the names that its metadata has, too."""

import hashlib
from pathlib import Path
from typing import Any

from diptych.cli import UsageError, frame

# What a picture's metadata holds besides what `ImageModel.generate` takes as it is.
SOURCES = ("picture", "mask")  # {"path": ..., "sha256": ...}
EXTRAS = ("outpaint", "enlarge", "weaker", "frames", "grid")


def size_of(words: str) -> tuple[int, int]:
    """(width, height) of "192x128"."""
    width, _, height = words.lower().replace("×", "x").partition("x")
    if not (width.strip().isdecimal() and height.strip().isdecimal()):
        raise UsageError(f"--size takes width and height in pixels, like 192x128, not '{words}'")
    return int(width), int(height)


def interval_of(words: str) -> tuple[float, float | None]:
    """Of "0.3,5"; no upper bound in "0.3,"."""
    low, comma, high = words.partition(",")
    try:
        if not comma:
            raise ValueError
        return float(low), float(high) if high.strip() not in ("", "inf") else None
    except ValueError:
        raise UsageError(f"--guidance-interval takes two noise levels as LOW,HIGH, not '{words}'") from None


def margins_of(words: str) -> dict[str, int]:
    """Of "left=32,right=64"; "32" is all four sides."""
    from diptych.image.outpaint import SIDES

    if words.strip().isdecimal():
        return dict.fromkeys(SIDES, int(words))
    margins: dict[str, int] = {}
    for part in words.split(","):
        side, _, pixels = (word.strip() for word in part.partition("="))
        if not pixels.isdecimal() or side in margins:
            raise UsageError(f"--outpaint takes pixels, or sides with theirs like left=32,right=64, not '{words}'")
        margins[side] = int(pixels)
    return margins


def source_of(path: Path) -> dict[str, str]:
    """A file as metadata names it.

    Raises:
        ValueError: there is none.
    """
    if not path.is_file():
        raise ValueError(f"there is no picture at '{path}'")
    with path.open("rb") as file:
        return {"path": str(path), "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def checked(wanted: dict[str, Any]) -> str:
    """Which of "frames", "grid" and "variations" is wanted, "" where none is.

    Raises:
        UsageError: settings that need others, or exclude them.
    """
    if "mask" in wanted and "picture" not in wanted:
        raise UsageError("--mask needs a picture that it lies over: name it with --from")
    if "strength" in wanted and "picture" not in wanted:
        raise UsageError("--strength needs a picture to begin from: name it with --from")
    if "outpaint" in wanted and "picture" not in wanted:
        raise UsageError("--outpaint needs a picture to paint around: name it with --from")
    if "outpaint" in wanted and {"height", "width"} & wanted.keys():
        raise UsageError("--outpaint says the size; leave out --size, --width and --height")
    if "share" in wanted and not {"to_prompt", "to_seed"} & wanted.keys():
        raise UsageError("--share is of the way to --to-prompt or --to-seed: name one")
    kinds = [name for name in ("frames", "grid", "variations") if name in wanted]
    is_on_its_way = bool({"to_prompt", "to_seed"} & wanted.keys())
    if is_on_its_way and not kinds and "share" not in wanted:
        wanted["frames"], kinds = {}, ["frames"]
    if len(kinds) > 1:
        raise UsageError(f"choose one of {', '.join(f'--{name}' for name in kinds)}")
    if kinds and wanted.get("count", 1) != 1:
        raise UsageError(f"-n does not go with --{kinds[0]}, which says how many pictures there are")
    if "frames" in wanted and not is_on_its_way:
        raise UsageError("--frames lie on the way to --to-prompt or --to-seed: name one")
    if "frames" in wanted and "share" in wanted:
        raise UsageError("--frames go all the way; --share is for a single picture of it")
    if "weaker" in wanted and wanted.get("negative_prompt"):
        raise UsageError("choose one of --negative, --weaker: guidance goes away from one of them")
    return kinds[0] if kinds else ""


def several(
    variations: int | None,
    distance: float | None,
    frames: int | None,
    fps: float | None,
    grid: list[str] | None,
    given: dict[str, Any],
) -> dict[str, Any]:
    """The options that ask for several pictures, of those that were given; `given` loses what they take for their own.

    Raises:
        UsageError: a number that cannot be, or options that exclude each other.
    """
    from diptych.cli.image_grid import axes_of
    from diptych.cli.image_variations import varied

    film = {name: value for name, value in (("count", frames), ("per_second", fps)) if value is not None}
    found: dict[str, Any] = {"frames": film} if film else {}
    if grid:
        found["grid"] = axes_of(grid)
    if variations is not None:
        found["variations"] = varied(variations, distance, given)
    elif distance is not None:
        raise UsageError("--distance is of --variations: say how many")
    return found


def enlarged(factor: float | None, strength: float | None) -> dict[str, Any]:
    """The second pass that was asked for, under its name; nothing where there is none."""
    if factor is None:
        if strength is not None:
            raise UsageError("--enlarge-strength is of --enlarge: say how many times")
        return {}
    from diptych.image.enlarge import STRENGTH, check

    with frame.settings():
        check(factor)
    return {"enlarge": {"factor": factor, "strength": STRENGTH if strength is None else strength}}


def measured(size: str | None, width: int | None, height: int | None) -> dict[str, Any]:
    """Width and height, said in one way or the other."""
    if size is not None and (width is not None or height is not None):
        raise UsageError("choose --size or --width and --height")
    if size is not None:
        width, height = size_of(size)
    return {"width": width, "height": height}
