"""The README is true: each command in it runs, in its order, as a reader would type it."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


COMMANDS = [line for block in blocks("sh") for line in block.splitlines() if re.match(r"(echo .* \| )?diptych ", line)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, kernels: Callable[[Path], Path]) -> Path:
    """Where a reader stands: the recipes beside them, a text of their own, `diptych` on the path."""
    place = tmp_path_factory.mktemp("reader")
    shutil.copytree(ROOT / "recipes", place / "recipes")
    story = "Once upon a time there was a hen who kept {} eggs in a nest of straw. She counted them every morning. "
    tales = "<|endoftext|>".join(" ".join(story.format(k * j) for j in range(2, 8)) for k in range(1, 60))
    (place / "my-stories.txt").write_text(tales)
    (place / "bin").mkdir()
    entry = place / "bin" / "diptych"
    entry.write_text(f"#!/bin/sh\nexec '{sys.executable}' -m diptych \"$@\"\n")
    entry.chmod(0o755)
    kernels(place / "cache")
    return place


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    # The data folder is left out on purpose: what the README says works without it.
    environment = {name: value for name, value in os.environ.items() if name != "DIPTYCH_DATA"} | {
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT / "src"),
        "DIPTYCH_CACHE": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
    }
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_of_the_tour_runs(command: str, folder: Path) -> None:
    """In order: later ones use the files of earlier ones. What they say they write is there."""
    done = run(["sh", "-c", command], folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    for name in re.findall(r"--(?:out|trace|sheet) (\S+)", command):
        stem, _, ending = name.rpartition(".")
        several = re.search(r"(?:-n|--variations) (\d+)", command)
        expected = [f"{stem}-{k + 1}.{ending}" for k in range(int(several[1]))] if several else [name]
        assert all((folder / one).exists() for one in expected), done.stdout


def test_the_picture_that_is_painted_again_is_the_same_bit_for_bit(folder: Path) -> None:
    from PIL import Image, ImageChops

    with Image.open(folder / "fox.png") as one, Image.open(folder / "again.png") as two:
        assert ImageChops.difference(one, two).getbbox() is None


def test_the_python_of_the_tour_runs(folder: Path) -> None:
    (program,) = blocks("python")
    done = run([sys.executable, "-c", program], folder)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout) > 100
    assert (folder / "cat.png").is_file()


def test_the_two_commands_are_targets_and_the_links_lead_somewhere() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^make (\w+)", "\n".join(blocks("sh")), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("http") or (ROOT / link).exists(), link
