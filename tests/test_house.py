"""The house itself: imports go down only, starting is instant, nothing is pickled, versions are exact."""

import ast
import json
import os
import re
import subprocess
import sys
import time
import tomllib
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "diptych"
MODULES = sorted(PACKAGE.rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

# From the ground up; rooms on one floor do not import each other. `models` is the door from a name to a panel.
FLOORS = [
    {"core"},
    {"text", "image"},
    {"models"},
    {"data"},
    {"interop"},
    {"train"},
    {"evaluate"},
    {"align"},
    {"serve"},
    {"cli"},
]
FLOOR = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
DOORS = {"__init__.py", "models/__init__.py", "__main__.py"}  # they open whatever is asked for, inside functions


def in_house(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every module that a file imports, wherever in it, as a full dotted name with the imported name at its end."""
    package = ["diptych", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                yield f"{source}.{alias.name}", node.lineno


def room_of(name: str) -> str | None:
    """The room of `diptych` that an imported name lies in; None for other packages and for the version."""
    parts = name.split(".")
    if parts[0] != "diptych" or parts[1:] == ["__version__"]:
        return None
    room = parts[1] if len(parts) > 1 else "load"
    return "models" if room == "load" else room  # `diptych.load` opens the models


def test_every_room_has_a_floor():
    rooms = {path.relative_to(PACKAGE).parts[0] for path in MODULES if path.parent != PACKAGE}
    assert rooms <= FLOOR.keys()


@pytest.mark.parametrize("path", [path for path in MODULES if in_house(path) not in DOORS], ids=in_house)
def test_imports_go_down_only(path):
    """Inside functions too, and for type checking too: a name that is not needed below is not known below."""
    here = path.relative_to(PACKAGE).parts[0]
    for name, line in imports(path):
        there = room_of(name)
        if there is not None and there != here:
            assert there in FLOOR, f"{in_house(path)}:{line} imports {name}, which is no room of the house"
            assert FLOOR[there] < FLOOR[here], f"{in_house(path)}:{line}: {here} must not import {name}"


def test_the_doors_import_nothing_of_the_house_until_they_are_opened():
    for door in ("__init__.py", "models/__init__.py"):
        statements = [node for node in parsed(PACKAGE / door).body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = [getattr(node, "module", None) or node.names[0].name for node in statements]
        assert all(name.split(".")[0] in sys.stdlib_module_names for name in names), door


def test_the_walk_sees_imports_in_every_form(tmp_path, monkeypatch):
    """The test of the test: an upward import in a function, a relative one, and one for typing are all found."""
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    (tmp_path / "text").mkdir()
    file = tmp_path / "text" / "a.py"
    file.write_text(
        "import diptych\nfrom diptych import train\nfrom ..image import unet\nfrom . import cache\n"
        "def f():\n    import diptych.cli.text as t\n    from diptych import __version__\n"
    )
    assert [room_of(name) for name, _ in imports(file)] == ["models", "train", "image", "text", "cli", None]


def test_dependencies_are_what_the_package_imports():
    """Nothing is needed that is not listed, nothing is listed that is not needed; what few ask for is an extra."""

    def names(lines: list[str]) -> set[str]:
        return {{"pillow": "PIL"}.get(name, name) for name in (Requirement(line).name for line in lines)}

    extras = {extra: names(lines) for extra, lines in PROJECT["optional-dependencies"].items()}
    offered = set().union(*(listed for extra, listed in extras.items() if extra not in ("test", "lint")))
    found = {name.split(".")[0] for path in MODULES for name, _ in imports(path)} | {"tensorboard"}  # torch imports it
    assert found - set(sys.stdlib_module_names) - {"diptych"} == names(PROJECT["dependencies"]) | offered


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "NO_COLOR": "1"}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=True)


def best_time(*arguments: str, times: int) -> float:
    """The fastest of several runs, in seconds: other work on the machine only ever adds."""
    elapsed = []
    for _ in range(times):
        begin = time.perf_counter()
        run(*arguments)
        elapsed.append(time.perf_counter() - begin)
    return min(elapsed)


@pytest.mark.parametrize(
    "arguments",
    [("-c", "import diptych"), ("-m", "diptych", "--help"), ("-m", "diptych", "--version")],
    ids=" ".join,
)
def test_torch_is_not_imported_before_it_is_needed(arguments):
    imported = {line.rsplit("|", 1)[-1].strip() for line in run("-X", "importtime", *arguments).stderr.splitlines()}
    assert "diptych" in imported or "-m" in arguments
    assert not {name.split(".")[0] for name in imported} & {"torch", "numpy", "tokenizers", "safetensors"}


def test_importing_every_command_does_not_import_torch():
    commands = [f"diptych.cli.{path.stem}" for path in (PACKAGE / "cli").glob("*.py") if path.stem != "__init__"]
    loaded = run("-c", f"import sys, {', '.join(sorted(commands))}; print('torch' in sys.modules)")
    assert loaded.stdout == "False\n"


def test_importing_costs_less_than_a_tenth_of_a_second():
    assert best_time("-c", "import diptych", times=9) - best_time("-c", "pass", times=9) < 0.1


def test_help_takes_less_than_three_tenths_of_a_second():
    assert best_time("-m", "diptych", "--help", times=5) < 0.3


@pytest.mark.parametrize("path", MODULES, ids=in_house)
def test_nothing_is_pickled(path):
    """Untrusted files must not be able to carry code: no pickle by any of its names, and nothing is evaluated."""
    modules = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    for name, line in imports(path):
        assert name.split(".")[0] not in modules, f"{in_house(path)}:{line}"
        assert name not in {"torch.load", "torch.save", "numpy.load"}, f"{in_house(path)}:{line}"
    for node in ast.walk(parsed(path)):
        if not isinstance(node, ast.Call):
            continue
        called, where = ast.unparse(node.func), f"{in_house(path)}:{node.lineno}: {ast.unparse(node)}"
        settings = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        assert called not in {"torch.load", "torch.save", "eval", "exec"}, where
        assert settings.get("allow_pickle", "False") == "False", where
        assert called not in {"np.load", "numpy.load"} or settings.get("allow_pickle") == "False", where


@pytest.mark.parametrize("path", MODULES, ids=in_house)
def test_a_file_holds_one_idea(path):
    """It opens with it, stays under 500 lines, and its name says what it is."""
    assert ast.get_docstring(parsed(path)) or path.name == "__main__.py"
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 500
    assert path.stem not in {"utils", "util", "helpers", "common", "misc", "base"}


def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*", pin) for pin in pins), "exact, and no local tag"
    names = [canonicalize_name(pin.partition("==")[0]) for pin in pins]
    assert len(set(names)) == len(names)
    return dict(zip(names, (pin.partition("==")[2] for pin in pins), strict=True))


def test_every_version_that_is_installed_is_pinned_exactly():
    """From what pyproject.toml asks for, down through what each of those asks for on this machine."""
    pins = pinned()
    extras = [line for extra in PROJECT["optional-dependencies"].values() for line in extra]
    extras = [line for line in extras if Requirement(line).name != PROJECT["name"]]  # one extra that names others
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"]
    waiting = [Requirement(line) for line in [*PROJECT["dependencies"], *extras, *build, "editables"]]
    seen: set[tuple[str, str]] = set()
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        if name.startswith(("nvidia-", "cuda-", "triton")):
            continue  # they come only with the wheel of torch for their GPUs, which names their versions itself
        assert name in pins, f"constraints.txt lacks {name}"
        assert wanted.specifier.contains(Version(pins[name])), f"{name}=={pins[name]} does not fit {wanted}"
        for extra in sorted(wanted.extras) or [""]:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            try:
                needs = metadata.requires(name) or []
            except metadata.PackageNotFoundError:
                continue  # of an extra that is not installed here
            below = map(Requirement, needs)
            waiting += [need for need in below if need.marker is None or need.marker.evaluate({"extra": extra})]


def test_the_package_names_its_version_once():
    assert "version" in PROJECT["dynamic"]
    stated = re.search(r'^__version__ = "(.+)"$', (PACKAGE / "__init__.py").read_text(encoding="utf-8"), re.MULTILINE)
    assert stated is not None
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{stated[1]}]" in changelog


def test_the_wheel_holds_every_file_of_the_package(tmp_path):
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        inside = set(opened.namelist())
    files = {path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {path.relative_to(ROOT / "src").as_posix() for path in files} <= inside
    assert any(name.endswith("licenses/NOTICE") for name in inside)


def shipped() -> list[Path]:
    return sorted(path.parent for path in (PACKAGE / "models").glob("*/config.json"))


def test_shipped_models_are_safetensors_and_together_below_60_megabytes():
    assert {directory.name for directory in shipped()} == {"brush", "judge", "quill"}
    allowed = {"config.json", "model.safetensors", "tokenizer.json", "README.md"}
    for directory in shipped():
        assert {path.name for path in directory.iterdir()} <= allowed
        assert isinstance(json.loads((directory / "config.json").read_text(encoding="utf-8")), dict)
    assert sum(path.stat().st_size for path in (PACKAGE / "models").rglob("*") if path.is_file()) < 60_000_000


@pytest.mark.parametrize("directory", shipped(), ids=lambda path: path.name)
def test_a_shipped_model_has_a_card_that_says_where_it_comes_from(directory):
    card = (directory / "README.md").read_text(encoding="utf-8").lower()
    for word in ("data", "licen", "recipe", "seed", "validation", "limit"):
        assert word in card, f"the card of {directory.name} says nothing about '{word}'"
    assert directory.name in (ROOT / "NOTICE").read_text(encoding="utf-8")


def test_no_file_names_a_path_of_someones_machine():
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    machine = re.compile(rb"(?<![\w.:/}])/(?:root|work|home|Users)/\w|[A-Z]:\\\\?Users")
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        if path.is_file() and path.suffix not in {".safetensors", ".png", ".webp", ".jpg"}:
            found = machine.search(path.read_bytes())
            assert found is None, f"{name} names {found and found[0]!r}"
