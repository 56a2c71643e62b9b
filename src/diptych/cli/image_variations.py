"""--variations: pictures near a picture. One that says its seed is painted from static that is turned a little; any
other one (--from) is painted over, as far as the distance says."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.cli import UsageError
from diptych.cli.image_save import described, save

if TYPE_CHECKING:
    from diptych.cli.image_easel import Easel, Watch

MOST = 64
DISTANCE = 0.3


def varied(count: int, distance: float | None, given: dict[str, Any]) -> dict[str, Any]:
    """How many, how far and where to; the last of it is taken from `given`.

    Raises:
        UsageError: what cannot be.
    """
    if not 1 <= count <= MOST:
        raise UsageError(f"variations must be from 1 to {MOST}, not {count}")
    distance = DISTANCE if distance is None else distance
    if not 0 < distance <= 1:
        raise UsageError(f"distance must be a number above 0 and up to 1, not {distance:g}")
    if "strength" in given:
        raise UsageError("choose one of --distance, --strength: of variations they are the same")
    if "to_prompt" in given or "share" in given:
        raise UsageError("--variations lie around a picture, not on the way to another: leave out --to-prompt, --share")
    seed = given.pop("to_seed", None)
    how = {"count": count, "distance": distance, "is_painted_over": "picture" in given}
    return how | ({} if seed is None else {"seed": seed})


def changes_of(wanted: dict[str, Any]) -> list[dict[str, Any]]:
    """The settings in which each variation differs from the picture."""
    count, distance = wanted["variations"]["count"], wanted["variations"]["distance"]
    first, seed = int(wanted.get("first_sample", 0)), int(wanted["seed"])
    if wanted["variations"]["is_painted_over"]:
        return [{"strength": distance, "first_sample": first + number} for number in range(count)]
    before = [tuple(turn) for turn in wanted.get("turns", ())]
    used = [seed, int(wanted.get("to_seed", seed)), *(turn[0] for turn in before)]
    base = int(wanted["variations"].get("seed", max(used) + 1))
    return [{"turns": [*before, (base + number, distance)]} for number in range(count)]


def paint_variations(easel: "Easel", out: Path | None, watch: "Watch") -> tuple[list[Path], dict[str, Any], str]:
    """The files, how the first was made, and a line about them.

    Each is painted by itself, so that its own settings paint it again.
    """
    changes = changes_of(easel.wanted)
    names = [f"variation {number + 1} of {len(changes)}" for number in range(len(changes))]
    images, facts = easel.paint_each(changes, names, watch, ends_tell=True)
    return save(images, facts, out), facts[0], described(images[0], facts[0], len(images))
