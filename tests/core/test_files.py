"""A reader never sees half a file: what was there stays until what comes is whole."""

import os
import stat
from pathlib import Path

import pytest

from diptych.core.files import (
    atomic_directory,
    atomic_file,
    output_path,
    recover_directory,
    write_atomically,
)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_write_atomically_replaces_what_was_there_and_leaves_nothing_else(tmp_path):
    target = tmp_path / "story.txt"
    write_atomically(target, b"old")
    write_atomically(target, b"new")
    assert target.read_bytes() == b"new"
    assert names(tmp_path) == ["story.txt"]


def test_an_exception_keeps_the_old_file_and_leaves_no_half_one(tmp_path):
    target = tmp_path / "story.txt"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_file(target) as temporary:
        temporary.write_text("ne")
        raise KeyboardInterrupt
    assert target.read_text() == "old"
    assert names(tmp_path) == ["story.txt"]


def test_the_target_never_holds_a_part_while_it_is_written(tmp_path):
    target = tmp_path / "story.txt"
    with atomic_file(target) as temporary:
        temporary.write_text("half")
        assert not target.exists()
        assert temporary.parent == target.parent  # the same file system, so that the rename is one step
    assert target.read_text() == "half"


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
@pytest.mark.parametrize(("mask", "file_mode", "directory_mode"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_what_is_written_has_the_permissions_that_the_umask_leaves(tmp_path, mask, file_mode, directory_mode):
    before = os.umask(mask)
    try:
        write_atomically(tmp_path / "file", b"")
        with atomic_directory(tmp_path / "folder"):
            pass
        assert os.umask(mask) == mask  # reading the umask did not change it
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == file_mode
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == directory_mode


def test_atomic_directory_takes_the_place_of_the_old_one_whole(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    (target / "only_in_the_old").write_text("1")
    with atomic_directory(target) as temporary:
        (temporary / "a").write_text("2")
        (temporary / "deep").mkdir()
        (temporary / "deep" / "b").write_text("3")
        assert names(target) == ["only_in_the_old"]
    assert names(target) == ["a", "deep"]
    assert names(tmp_path) == ["model"]


def test_atomic_directory_survives_an_exception(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    (target / "a").write_text("old")
    with pytest.raises(RuntimeError, match="no space"), atomic_directory(target) as temporary:
        (temporary / "a").write_text("new")
        raise RuntimeError("no space")
    assert (target / "a").read_text() == "old"
    assert names(tmp_path) == ["model"]


def test_atomic_directory_makes_the_folders_above_it(tmp_path):
    with atomic_directory(tmp_path / "runs" / "first" / "model") as temporary:
        (temporary / "a").write_text("1")
    assert (tmp_path / "runs" / "first" / "model" / "a").read_text() == "1"


def test_a_kill_between_the_two_renames_is_recovered(tmp_path, monkeypatch):
    """The second rename is made to fail, as if the process had died there; the old folder is found again."""
    target = tmp_path / "model"
    target.mkdir()
    (target / "a").write_text("old")
    real, calls = os.replace, []

    def dies_at_the_second(source, destination):
        calls.append(source)
        if len(calls) == 2:
            raise SystemExit
        real(source, destination)

    monkeypatch.setattr(os, "replace", dies_at_the_second)
    with pytest.raises(SystemExit), atomic_directory(target) as temporary:
        (temporary / "a").write_text("new")
    monkeypatch.undo()
    recover_directory(target)
    assert (target / "a").read_text() == "old"
    assert names(tmp_path) == ["model"]


def test_recover_directory_leaves_a_whole_folder_alone(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / ".model.old").mkdir()
    recover_directory(tmp_path / "model")
    recover_directory(tmp_path / "nothing_here")
    assert names(tmp_path) == [".model.old", "model"]


def test_output_path_names_a_folder_that_does_not_exist(tmp_path):
    assert output_path(tmp_path / "cat.png") == tmp_path / "cat.png"
    with pytest.raises(ValueError, match=r"^the output folder '.*nowhere' does not exist.*$"):
        output_path(tmp_path / "nowhere" / "cat.png")
    with pytest.raises(ValueError, match="is a folder"):
        output_path(tmp_path)
