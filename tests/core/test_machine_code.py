"""What is kept of compiled code: found again, made anew where it is damaged, done without where it cannot be kept."""

import ast
import os
from pathlib import Path
from typing import Any

import pytest

import diptych
from diptych.core import machine_code


def kept(code: bytes, library: machine_code.Library = machine_code.ROWS) -> bytes:
    return machine_code._kept(machine_code._path(library), lambda: code)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path))
    return tmp_path / "kernels"


def test_code_is_made_once(folder: Path) -> None:
    assert kept(b"one\ntwo") == b"one\ntwo"
    assert kept(b"another") == b"one\ntwo"
    assert len(list(folder.iterdir())) == 1


def test_of_another_machine_or_library_it_is_other_code(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept(b"one")
    assert kept(b"two", machine_code.MANY) == b"two"
    monkeypatch.setattr(machine_code, "_about", lambda: "another machine")
    assert kept(b"three") == b"three"
    monkeypatch.undo()
    monkeypatch.setenv("DIPTYCH_CACHE", str(folder.parent))
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


class Process:
    """Stands in for the process that compiles."""

    said: list[tuple[list[str], dict[str, str]]]
    returncode = 0

    def __init__(self, command: list[str], *, env: dict[str, str], **_: Any) -> None:
        self.said.append((command, env))

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None: ...

    def communicate(self) -> tuple[bytes, None]:
        return b"code", None

    def kill(self) -> None: ...


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> type[Process]:
    monkeypatch.setattr(Process, "said", [], raising=False)
    monkeypatch.setattr(Process, "returncode", 0)
    monkeypatch.setattr(machine_code.subprocess, "Popen", Process)
    monkeypatch.setattr(machine_code, "_made", {})
    monkeypatch.setattr(machine_code, "_loaded", lambda library, code: {"name": code})
    return Process


def test_it_is_this_diptych_that_compiles(process: type[Process], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it was imported from a folder that the other process would not look into."""
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    assert machine_code._made_apart(machine_code.MANY) == b"code"
    ((command, environment),) = process.said
    assert command[-1] == "many"
    assert environment["PYTHONPATH"].split(os.pathsep) == [str(Path(diptych.__file__).parents[1]), "elsewhere"]


def test_what_was_begun_is_not_begun_again(
    folder: Path, process: type[Process], capsys: pytest.CaptureFixture[str]
) -> None:
    """And who waits for it is told of it, once; who finds it is not."""
    machine_code._tell.cache_clear()
    libraries = [machine_code.ROWS, machine_code.MANY]
    machine_code.begin(libraries)
    machine_code.compile_beside(libraries)
    assert sorted(command[-1] for command, _ in process.said) == ["many", "row"]
    machine_code._made.clear()
    machine_code._tell.cache_clear()
    capsys.readouterr()
    assert machine_code.compiled(machine_code.MANY) == {"name": b"code"}
    assert len(process.said) == 2
    assert capsys.readouterr().err == ""
    (folder / next(path.name for path in folder.iterdir() if path.name.startswith("row"))).unlink()
    machine_code.compiled(machine_code.ROWS)
    assert capsys.readouterr().err == "diptych: compiling for this processor, once ...\n"


@pytest.mark.parametrize("library", machine_code.LIBRARIES.values(), ids=lambda library: library.name)
def test_what_a_library_is_kept_under_is_made_of_all_that_it_is_compiled_from(library: machine_code.Library) -> None:
    """A module left out would be one whose changes change nothing until the cache is emptied."""
    folder = Path(machine_code.__file__).parent
    beside = {"files", "memory"}  # which machine_code itself needs
    found, open = set[str](), {function.module for function in library.functions}
    while open:
        found |= open
        imports = ast.walk(ast.parse("".join((folder / f"{module}.py").read_text() for module in open)))
        froms = [node for node in imports if isinstance(node, ast.ImportFrom)]
        named = {node.module.removeprefix("diptych.core.") for node in froms if node.module}
        named |= {name.name for node in froms if node.module == "diptych.core" for name in node.names}
        open = {name for name in named if (folder / f"{name}.py").is_file()} - found - beside
    assert found == set(library.sources)


def test_what_cannot_be_compiled_says_so_to_who_needs_it(folder: Path, process: type[Process]) -> None:
    process.returncode = 1
    machine_code.begin([machine_code.MANY])
    with pytest.raises(RuntimeError, match=r"compiling for this processor failed: '.*machine_code many' says why"):
        machine_code.compiled(machine_code.MANY)
    assert not folder.exists()
