"""The settings of a text as options of a command: made from the one list, `text.settings`."""

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from diptych.cli import UsageError, frame
from diptych.text.settings import Settings, listed

Command = Callable[..., None]


def takes_settings(command: Command) -> Command:
    """Replace a command's `**settings` by an option for each setting; the command gets those by name."""
    plain = inspect.signature(command)
    own = [one for one in plain.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
    defaults = Settings()
    options = []
    for name, (kind, about) in listed().items():
        is_number = kind in (int, float)
        options.append(
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[
                    (kind if is_number else list[str]) | None,
                    typer.Option(help=about.says, show_default=str(getattr(defaults, name)) if is_number else False),
                ],
            )
        )
    command.__signature__ = plain.replace(parameters=[*own, *options])  # type: ignore[attr-defined]
    return command


def given(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given, as `generate` takes them, checked; the others are the model's to say."""
    chosen = {name: value for name, value in options.items() if value not in (None, [])}
    if "logit_bias" in chosen:
        chosen["logit_bias"] = _biases(chosen["logit_bias"])
    with frame.settings():
        Settings.named(chosen)
    return chosen


def _biases(words: list[str]) -> dict[str, str]:
    """ID=NUMBER, which `Settings` checks."""
    for word in words:
        if "=" not in word:
            raise UsageError(f"--logit-bias takes a token id and a number as ID=NUMBER, not '{word}'")
    return {token: bias for token, _, bias in (word.partition("=") for word in words)}
