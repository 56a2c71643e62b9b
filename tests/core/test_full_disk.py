"""What a full disk does to files that are written whole or not at all."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from diptych.core import weights
from diptych.core.files import atomic_directory, atomic_file, write_atomically
from diptych.core.trace import Trace

LARGE = {"weight": torch.zeros(4096)}


def save_trace(path: Path) -> None:
    Trace("text", "quill", {}, {"logits": torch.zeros(1, 4096)}, [{"step": 0}]).save(path)


def save_checkpoint(path: Path) -> None:
    weights.save(path, {"width": 1}, LARGE)


def save_text(path: Path) -> None:
    write_atomically(path, bytes(4096))


@pytest.mark.parametrize("save", [save_trace, save_checkpoint, save_text])
def test_it_is_said_in_the_systems_words_of_the_file_that_was_asked_for(
    save: Callable[[Path], None], disk: Callable[[], AbstractContextManager[Callable[[], None]]], tmp_path: Path
) -> None:
    save(tmp_path / "made")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with disk() as fill, pytest.raises(OSError, match="File too large") as refused:
        fill()
        save(tmp_path / "made")
    assert refused.value.filename == str(tmp_path / "made")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("place", [atomic_file, atomic_directory])
def test_what_is_wrong_with_another_file_is_said_of_that(place: Callable[..., Iterator[Path]], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as refused, place(tmp_path / "made"):  # type: ignore[attr-defined]
        (tmp_path / "elsewhere").read_bytes()
    assert refused.value.filename == str(tmp_path / "elsewhere")


def test_what_is_no_matter_of_the_system_stays_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise SafetensorError("header too large")

    monkeypatch.setattr(weights, "save_file", refuse)
    with pytest.raises(SafetensorError, match="header too large"):
        weights.save_tensors(LARGE, tmp_path / "made")
