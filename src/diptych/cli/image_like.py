"""--like: from a picture's metadata back to the settings that paint it again."""

import inspect
from pathlib import Path
from typing import Any

from diptych.cli import frame
from diptych.cli.image_settings import EXTRAS, SOURCES, source_of

NEEDED = ("prompt", "negative_prompt", "seed", "sampler", "nodes", "steps", "guidance_scale", "model")


def facts_of(like: Path) -> dict[str, Any]:
    """How the picture was made; all that repeating it needs is there."""
    from diptych.image.photo import read_facts

    facts = read_facts(like)
    lacking = [name for name in NEEDED if name not in facts]
    if lacking or facts.get("has_own_noise") or facts.get("is_whole") is False:
        why = f"it does not say its {lacking[0]}" if lacking else "it was not painted from its seed alone"
        raise ValueError(f"'{like}' cannot be painted again: {why}")
    return facts


def again(
    before: dict[str, Any], given: dict[str, Any], like: Path, *, is_same: bool
) -> tuple[dict[str, Any], int | None]:
    """The settings to paint with, and which of the pictures to keep (None: all).

    A picture that was painted among others is painted among them again when nothing is changed: how many rows are
    multiplied together can move the last bit of a sum.
    """
    from diptych.image.model import ImageModel

    taken = [*inspect.signature(ImageModel.generate).parameters, *EXTRAS]
    left_out = {"self", "noise", *SOURCES, *_replaced(before, given)}
    wanted = {name: before[name] for name in taken if before.get(name) is not None and name not in left_out}
    for name in EXTRAS:
        if name != "weaker" and not isinstance(wanted.get(name, {}), dict):
            raise ValueError(f"'{like}' carries a damaged description of how it was made: its {name}")
    for name in SOURCES:
        if name in before and name not in given:
            wanted[name] = source_again(name, before[name], like)
    if "weaker" in wanted and "weaker" not in given:
        wanted["weaker"] = model_again(wanted["weaker"], "--weaker", like)
    if "frames" in wanted and "frames" in given:
        given = given | {"frames": wanted["frames"] | given["frames"]}
    wanted |= given
    sample, first = int(before.get("sample", 0)), int(before.get("first_sample", before.get("sample", 0)))
    count = int(before.get("count", 1))
    if is_same and count > 1 and first <= sample < first + count:
        which = f"picture {sample - first + 1} of {count} painted together"
        frame.say(f"{which}; all are painted again, to match every bit")
        return wanted | {"first_sample": first}, sample - first
    return wanted | {"first_sample": sample, "count": given.get("count", 1)}, None


def _replaced(before: dict[str, Any], given: dict[str, Any]) -> set[str]:
    """What the picture was made with and what is given now would contradict."""
    replaced = set()
    if {"frames", "grid", "variations"} & given.keys():
        replaced |= {"frames", "grid"} - ({"frames"} & given.keys())
    if "frames" in given:
        replaced.add("share")
    if "outpaint" in before or "outpaint" in given:  # which says the size
        replaced |= {"height", "width"}
    return replaced


def source_again(name: str, before: Any, like: Path) -> dict[str, str]:
    """The file that a picture was begun from: where it was then, or beside the picture, its content unchanged.

    Raises:
        ValueError: it is not there any more; the message says how to name it.
    """
    option = {"picture": "--from", "mask": "--mask"}[name]
    if not isinstance(before, dict) or not {"path", "sha256"} <= before.keys():
        raise ValueError(f"'{like}' was painted with a {name} that it does not name; name it with {option}")
    then = Path(str(before["path"]))
    changed = ""
    for path in (then, like.parent / then.name):
        if path.is_file():
            found = source_of(path)
            if found["sha256"] == before["sha256"]:
                return found
            changed = " as it was then"
    raise ValueError(
        f"'{like}' was painted with the {name} '{then}', which is not there{changed}; name it with {option}"
    )


def model_again(name: Any, option: str, like: Path) -> str:
    """A bundled model's name; what a picture says is never taken for a path."""
    from diptych.models import bundled

    if str(name) not in bundled():
        raise ValueError(f"'{like}' was painted by '{name}', which is not bundled; name its folder with {option}")
    return str(name)


def tell_differences(before: dict[str, Any], name: str) -> None:
    from diptych import __version__

    if before["model"] != name:
        frame.say(f"note: painted by model '{before['model']}' then, by '{name}' now; the pictures will differ")
    if before.get("version") != __version__:
        frame.say(f"note: painted by diptych {before.get('version')} then, {__version__} now; the pictures may differ")
