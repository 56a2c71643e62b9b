"""What is kept of compiled code: found again, made anew where it is damaged, done without where it cannot be kept."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import diptych
from diptych.core import machine_code


def kept(code: bytes, library: machine_code.Library = machine_code.ROWS, about: str = "this machine") -> bytes:
    return machine_code._kept(library, about, lambda: code)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path))
    return tmp_path / "kernels"


def test_code_is_made_once(folder: Path) -> None:
    assert kept(b"one\ntwo") == b"one\ntwo"
    assert kept(b"another") == b"one\ntwo"
    assert len(list(folder.iterdir())) == 1


def test_of_another_machine_or_library_it_is_other_code(folder: Path) -> None:
    kept(b"one")
    assert kept(b"two", about="that machine") == b"two"
    assert kept(b"three", machine_code.MANY) == b"three"
    assert kept(b"four") == b"one"


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: data[:9], lambda data: b"", lambda data: b"\0"]
)
def test_damaged_code_is_made_anew(folder: Path, damage) -> None:
    kept(b"one")
    (path,) = folder.iterdir()
    path.write_bytes(damage(path.read_bytes()))
    assert kept(b"two") == b"two"
    assert kept(b"three") == b"two"


def test_code_that_cannot_be_kept_is_made_each_time(folder: Path) -> None:
    folder.write_text("no folder")
    assert kept(b"one") == b"one"
    assert kept(b"two") == b"two"


def test_it_is_this_diptych_that_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it was imported from a folder that the other process would not look into."""

    def run(command: list[str], *, env: dict[str, str], **_: Any) -> SimpleNamespace:
        return SimpleNamespace(stdout=f"{env['PYTHONPATH']}\n{command[-1]}".encode())

    monkeypatch.setattr(machine_code.subprocess, "run", run)
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    paths, library = machine_code._made_apart(machine_code.MANY).decode().split("\n")
    assert library == "many"
    assert paths.split(os.pathsep) == [str(Path(diptych.__file__).parents[1]), "elsewhere"]
