"""The command line, one file a command; nothing is imported but the command that is asked for.

`main` is the frame around all of them: whatever goes wrong ends in one line on standard error and an exit status.
"""

import atexit
import contextlib
import gc
import importlib
import os
import sys
from typing import Any

COMMANDS = {
    "text": "write on from a prompt, token by token",
    "image": "paint a picture from a prompt, step by step",
    "chat": "talk with a model",
    "noise": "show how a photo turns into static",
    "train": "train a model from a recipe",
    "runs": "look at training runs: list, show, compare",
    "plan": "say what training a recipe will take",
    "score": "say how likely a model holds a text, token by token",
    "evaluate": "measure how good a model is",
    "trace": "look at a recorded generation: film, show, words",
    "models": "list the bundled models; import and export others",
}
HELP = """\
Usage: diptych [--debug] [--version] COMMAND ...

Images and text made step by step, with every step in sight.

Commands:
{commands}

Options:
  --debug     show the whole traceback of an error
  --version   show the version
  --help      show this page; 'diptych COMMAND --help' shows a command's

For example:
  diptych text "Once upon a time"
  diptych image "a cat wearing sunglasses on a beach at sunset"

Results go to standard output, progress to standard error. Exit status: 0 done; 1 failed or interrupted (a model or a
file that is missing or damaged); 2 wrong usage (an option, a setting, a recipe or an output folder that cannot be).
"""


# As a process ends, Python looks through all objects for circles to free: 0.2 s where torch is imported.
atexit.register(gc.freeze)


class UsageError(ValueError):
    """A wrong option or setting, found before any work: exit status 2."""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    end = words.index("--") if "--" in words else len(words)
    is_debugging = "--debug" in words[:end]
    words = [word for word in words[:end] if word != "--debug"] + words[end:]
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that lacks a letter shows "?" instead of failing
    try:
        status = _run(words)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # whoever read our output has seen enough
        _silence_output()
        return 1
    except (Exception, KeyboardInterrupt) as error:
        if is_debugging:
            import traceback

            traceback.print_exc()
        return _fail(error)


def _run(words: list[str]) -> int:
    if not words or words[0] in ("--help", "-h", "help"):
        width = max(map(len, COMMANDS))
        commands = "\n".join(f"  {name:<{width}}  {about}" for name, about in COMMANDS.items())
        (sys.stdout if words else sys.stderr).write(HELP.format(commands=commands))
        return 0 if words else 2
    if words[0] == "--version":
        from diptych import __version__

        print(f"diptych {__version__}")
        return 0
    name = words[0]
    if name not in COMMANDS:
        from diptych.core.spelling import unknown

        raise UsageError(unknown("option" if name.startswith("-") else "command", name, COMMANDS))
    import typer

    from diptych.cli.frame import InSections, application

    module = importlib.import_module(f"diptych.cli.{name}")
    app = getattr(module, "app", None)  # of a command that has commands of its own; else the function of its name
    if app is None:
        app = application()
        app.command(name, cls=InSections)(getattr(module, name))
    command = typer.main.get_command(app)
    try:
        with command.make_context(f"diptych {name}", words[1:]) as context:
            command.invoke(context)
    except typer.Exit as ending:
        return ending.exit_code
    return 0


def _fail(error: BaseException) -> int:
    """Say in one line what went wrong; the exit status."""
    if isinstance(error, KeyboardInterrupt):
        message, status = str(error) or "interrupted; nothing was written", 1
    elif hasattr(error, "format_message"):  # typer's own: an option that is unknown, lacks its value, ...
        message, status = _usage(error), 2
    elif isinstance(error, OSError) and error.strerror:
        message, status = f"{error.strerror}: '{error.filename}'" if error.filename else error.strerror, 1
    elif isinstance(error, ValueError):
        message, status = str(error), 2 if isinstance(error, UsageError) else 1
    else:
        message, status = f"{type(error).__name__}: {error} (--debug shows where)", 1
    sys.stdout.flush()
    print(f"diptych: {' '.join(message.split())}", file=sys.stderr)
    return status


def _usage(error: Any) -> str:
    message = str(error.format_message()).rstrip(".")
    context = getattr(error, "ctx", None)
    hint = f"; see '{context.command_path} --help'" if context else ""
    return message[:1].lower() + message[1:] + hint


def _silence_output() -> None:
    """Point standard output at nothing, so that Python does not complain of the closed pipe at its end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
