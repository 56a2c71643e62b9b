"""The settings of a text as options of a command: made from the one list, `text.settings`."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from diptych.cli import UsageError, frame
from diptych.text.settings import CONSTRAINTS, Settings, listed

Command = Callable[..., None]


def takes_settings(command: Command) -> Command:
    """Replace a command's `**settings` by an option for each setting; the command gets those by name.

    A constraint is an option for each of its kinds.
    """
    plain = inspect.signature(command)
    own = [one for one in plain.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
    options = []
    for name, (kind, about) in listed().items():
        if name == "constraint":
            options += [_option(one, str, says) for one, says in CONSTRAINTS.items()]
        elif kind in (int, float):
            options.append(_option(name, kind, about.says, str(getattr(Settings(), name))))
        else:
            options.append(_option(name, list[str], about.says))
    command.__signature__ = plain.replace(parameters=[*own, *options])  # type: ignore[attr-defined]
    return command


def _option(name: str, kind: Any, says: str, default: str | bool = False) -> inspect.Parameter:
    annotation = Annotated[kind | None, typer.Option(help=says, show_default=default)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def given(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given, as `generate` takes them, checked; the others are the model's to say."""
    chosen = {name: value for name, value in options.items() if value not in (None, [])}
    if "logit_bias" in chosen:
        chosen["logit_bias"] = _biases(chosen["logit_bias"])
    kind = frame.one_of(**{kind: kind in chosen for kind in CONSTRAINTS})
    if kind:
        chosen["constraint"] = {kind: _source(kind, chosen.pop(kind))}
    with frame.settings():
        Settings.named(chosen)
    return chosen


def _source(kind: str, word: str) -> str:
    """What an option says itself, or the file that it names."""
    if kind == "regex" or (kind == "json_schema" and word.lstrip().startswith("{")):
        return word
    try:
        return Path(word).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"'{word}' is not a text in UTF-8") from error
    except OSError as error:
        raise UsageError(f"--{kind.replace('_', '-')} names a file that cannot be read: '{word}'") from error


def _biases(words: list[str]) -> dict[str, str]:
    """ID=NUMBER, which `Settings` checks."""
    for word in words:
        if "=" not in word:
            raise UsageError(f"--logit-bias takes a token id and a number as ID=NUMBER, not '{word}'")
    return {token: bias for token, _, bias in (word.partition("=") for word in words)}
