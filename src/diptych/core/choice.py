"""A word with settings of its own, in one string: "ddim", "ddim:eta=0.5", "rectified-flow:shift=3".

So what is chosen by name (a sampler, a noise path, a weighting) stays one string with all that it needs, wherever it is
kept: in a recipe, on the command line, in a picture's facts, in a checkpoint's config.json.
"""

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

from diptych.core.checks import is_number
from diptych.core.spelling import unknown


def read_choice(kind: str, text: str, known: Mapping[str, Mapping[str, Any]]) -> tuple[str, dict[str, Any]]:
    """The name and its settings, those that were left out at their defaults.

    Args:
        kind: what is chosen, for messages.
        known: each name with its settings' defaults; a setting has the type of its default.

    Raises:
        ValueError: an unknown name or setting, or a value of another type.
    """
    name, _, rest = text.partition(":")
    if name not in known:
        raise unknown(kind, name, known)
    settings = dict(known[name])
    for part in filter(None, rest.split(",")):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if key not in settings:
            raise (
                unknown(f"setting of {kind} '{name}'", key, known[name])
                if known[name]
                else ValueError(f"{kind} '{name}' has no settings, and '{part}' is one")
            )
        if not equals:
            raise ValueError(f"{kind} '{text}': '{part}' must be {key}=VALUE")
        settings[key] = _typed(value, settings[key], f"{key} of {kind} '{name}'")
    return name, settings


def write_choice(name: str, settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """The shortest string that `read_choice` reads as these settings."""
    changed = [f"{key}={_written(value)}" for key, value in settings.items() if value != defaults[key]]
    return f"{name}:{','.join(changed)}" if changed else name


def settings_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The settings of what a name stands for, with their defaults: the arguments that may be left out."""
    arguments = signature(function).parameters.items()
    return {key: argument.default for key, argument in arguments if argument.default is not argument.empty}


def _typed(text: str, default: Any, what: str) -> Any:
    if isinstance(default, bool):
        if text in ("true", "false"):
            return text == "true"
        raise ValueError(f"{what} must be true or false, not '{text}'")
    if isinstance(default, str):
        return text
    whole = isinstance(default, int)
    try:
        value = int(text) if whole else float(text)
    except ValueError:
        value = None
    if not is_number(value):
        raise ValueError(f"{what} must be a {'whole' if whole else 'finite'} number, not '{text}'")
    return value


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value).removesuffix(".0")
