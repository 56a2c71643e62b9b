"""Commands run inside the test's process, in an empty folder: exit status, standard output, standard error."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from diptych.cli import main


class Run(NamedTuple):
    status: int
    out: str
    err: str


Command = Callable[..., Run]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, a terminal of 80 columns."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


@pytest.fixture
def diptych(folder: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """`diptych("text", "Once", "--seed", 1)` runs that command."""

    def run(*words: object) -> Run:
        capsys.readouterr()
        status = main([str(word) for word in words])
        return Run(status, *capsys.readouterr())

    return run


@pytest.fixture
def write(diptych: Command, tiny_quill: Path) -> Command:
    return lambda *words: diptych("text", "Once upon", "--model", tiny_quill, "--dtype", "float32", *words)


@pytest.fixture
def paint(diptych: Command, tiny_brush: Path) -> Command:
    return lambda *words: diptych("image", "a cat", "--model", tiny_brush, "--dtype", "float32", *words)
