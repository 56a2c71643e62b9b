import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from diptych import __version__
from diptych.cli import COMMANDS, main

HEAVY = {"torch", "numpy", "PIL", "rich", "tokenizers", "safetensors"}


def imported_by(*words: str) -> set[str]:
    """Modules that a fresh process has imported once a command has ended well."""
    code = "import sys; from diptych.cli import main; s = main(sys.argv[1:]); print(*sys.modules); sys.exit(s)"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_help_imports_nothing_but_the_frame():
    assert imported_by("--help") & (HEAVY | {"typer"}) == set()


@pytest.mark.parametrize("command", [*COMMANDS, "trace film"])
def test_the_help_of_a_command_imports_nothing_heavy(command):
    assert imported_by(*command.split(), "--help") & HEAVY == set()


def test_a_command_says_how_it_is_used(diptych):
    assert diptych("trace", "film", "--help").out.startswith("Usage: diptych trace film [OPTIONS] {file}\n")


def test_every_command_is_listed(diptych):
    run = diptych("--help")
    assert run.status == 0
    for name, about in COMMANDS.items():
        assert f"  {name} " in run.out
        assert about in run.out


def test_version(diptych):
    assert diptych("--version") == (0, f"diptych {__version__}\n", "")


def test_without_a_command_the_help_comes_on_standard_error(diptych):
    status, out, err = diptych()
    assert (status, out) == (2, "")
    assert err.startswith("Usage: diptych")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["txt"], "unknown command 'txt'; did you mean 'text'? Known: text, image"),
        (["--colour"], "unknown option '--colour'"),
        (["text"], "missing argument 'prompt'"),
        (["text", "a", "--temperatur", "1"], "no such option: --temperatur"),
        (["text", "a", "--max-tokens", "many"], "invalid value for '--max-tokens'"),
        (["text", "a", "--odds", "--json"], "choose one of --odds, --json"),
        (["image"], "missing argument 'prompt'"),
        (["image", "a", "--out", "cat.jpg"], "'cat.jpg' must end in .png"),
        (["trace"], "missing command"),
        (["noise", "a.png", "--pictures", "1"], "pictures must be from 2 to 50, not 1"),
        (["text", "a", "--dtype", "float8"], "unknown dtype 'float8'"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(diptych, folder, words, message):
    status, out, err = diptych(*words)
    assert (status, out) == (2, "")
    assert err.startswith(f"diptych: {message}")
    assert err.count("\n") == 1
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["text", "a", "--model", "quil"], "unknown model 'quil'"),
        (["image", "a", "--model", "nobody"], "unknown model 'nobody'"),
        (["image", "--like", "cat.png"], "there is no picture at 'cat.png'"),
        (["noise", "cat.png"], "there is no picture at 'cat.png'"),
        (["train", "cat.toml"], "there is no recipe at 'cat.toml'"),
        (["trace", "show", "cat.trace"], "there is no trace at 'cat.trace'"),
    ],
)
def test_what_is_missing_is_one_line_and_status_1(diptych, folder, words, message):
    status, out, err = diptych(*words)
    assert (status, out) == (1, "")
    assert err.startswith(f"diptych: {message}")
    assert err.count("\n") == 1
    assert list(folder.iterdir()) == []


def test_debug_shows_where_it_went_wrong(diptych):
    run = diptych("noise", "cat.png", "--debug")
    assert run.status == 1
    assert "Traceback" in run.err
    assert run.err.endswith("\ndiptych: there is no picture at 'cat.png'\n")


def test_a_fault_of_our_own_is_one_line_too(diptych, monkeypatch):
    monkeypatch.setattr("diptych.models.bundled", lambda: 1 / 0)
    assert diptych("models") == (1, "", "diptych: ZeroDivisionError: division by zero (--debug shows where)\n")


def test_a_reader_who_leaves_early_is_no_error(tiny_quill):
    command = [sys.executable, "-m", "diptych", "text", "Once", "--model", str(tiny_quill), "--odds", "--seed", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 1


def start(*words: object, cwd: Path) -> subprocess.Popen[str]:
    """A command as a process that listens to Ctrl-C even where the test itself runs in the background."""
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from diptych.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_interrupted_painting_writes_nothing(tiny_brush, tmp_path):
    words = ("image", "a cat", "--model", tiny_brush, "--steps", 1000, "--json", "--trace", "a.trace", "--seed", 1)
    with start(*words, cwd=tmp_path) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert (process.returncode, err) == (1, "diptych: interrupted; nothing was written\n")
    assert list(tmp_path.iterdir()) == []


def test_interrupted_writing_writes_nothing(tiny_quill, tmp_path):
    words = ("text", "Once", "--model", tiny_quill, "--max-tokens", 4000, "--out", "a.txt", "--seed", 1)
    with start(*words, "--temperature", 0, "--json", cwd=tmp_path) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert (process.returncode, err) == (1, "diptych: interrupted; nothing was written\n")
    assert list(tmp_path.iterdir()) == []


def test_no_colour_in_a_pipe(diptych, write):
    run = write("--odds", "--max-tokens", 3, "--seed", 1)
    assert "\x1b" not in run.out + run.err


def test_main_takes_the_words_of_the_process(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["diptych", "--version"])
    assert main() == 0
    assert capsys.readouterr().out == f"diptych {__version__}\n"


def test_help_lists_many_options_in_sections(diptych):
    """Each option under its heading; a command without headings lists them as ever."""
    out = diptych("image", "--help").out
    places = [
        out.index(f"\n{name}:\n") for name in ("Options", "Guidance", "From a picture", "Several pictures", "Output")
    ]
    assert places == sorted(places)
    for option, section in (("--seed", 0), ("--negative", 1), ("--strength", 2), ("--grid", 3), ("--explain", 4)):
        end = [*places, len(out)][section + 1]
        assert places[section] < out.index(f"\n  {option} ") < end
    assert "\nOptions:\n" in diptych("noise", "--help").out
