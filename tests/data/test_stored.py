"""Arrays that are made once: whole or not there, taken up where they stopped, whoever else makes them."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from diptych.data.stored import stored_arrays


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path))
    return tmp_path


def rows(part: range) -> list[np.ndarray]:
    """Two fields: one row an item, and as many numbers an item as its number says."""
    return [np.array([[i, -i] for i in part], np.int16), np.concatenate([np.full(i, i, np.float32) for i in part])]


def test_chunks_are_joined_in_order(cache: Path) -> None:
    made = stored_arrays("x", ("fixed", "ragged"), 10, 4, rows)
    for found, expected in zip(made, rows(range(10)), strict=True):
        assert np.array_equal(found.array, expected)
        assert found.array.dtype == expected.dtype
        assert isinstance(found.array, np.memmap)
        assert len(pickle.dumps(found)) < 500, "a path, not the numbers"
    assert sorted(path.name for path in cache.iterdir()) == ["x-fixed.npy", "x-ragged.npy"]


def test_rows_read_from_the_file_are_those_of_the_mapping(cache: Path) -> None:
    for found in stored_arrays("x", ("fixed", "ragged"), 10, 4, rows):
        whole = np.array(found.array)
        assert np.array_equal(found.read(3, 7), whole[3:7])
        assert np.array_equal(found.some([8, 0, 5]), whole[[8, 0, 5]])
        assert not isinstance(found.read(0, 1), np.memmap)


def test_what_was_made_before_a_kill_is_not_made_again(cache: Path) -> None:
    asked: list[range] = []

    def make(part: range) -> list[np.ndarray]:
        asked.append(part)
        if part.start == 8 and len(asked) == 3:
            raise KeyboardInterrupt
        return rows(part)

    with pytest.raises(KeyboardInterrupt):
        stored_arrays("x", ("fixed", "ragged"), 10, 4, make)
    assert not list(cache.glob("*.npy")), "nothing looks finished"
    made = stored_arrays("x", ("fixed", "ragged"), 10, 4, make)
    assert [part.start for part in asked] == [0, 4, 8, 8]
    assert np.array_equal(made[1].array, rows(range(10))[1])
    stored_arrays("x", ("fixed", "ragged"), 10, 4, make)
    assert len(asked) == 4


def test_a_faster_process_that_clears_the_chunks_away_does_no_harm(cache: Path) -> None:
    """The other one finishes and tidies up just before our second chunk is written."""

    def make(part: range) -> list[np.ndarray]:
        if part.start == 4:
            stored_arrays("x", ("fixed", "ragged"), 10, 4, rows)
            shutil.rmtree(cache / ".x-4.parts", ignore_errors=True)
        return rows(part)

    made = stored_arrays("x", ("fixed", "ragged"), 10, 4, make)
    assert np.array_equal(made[0].array, rows(range(10))[0])


def test_nothing_cannot_be_stored() -> None:
    with pytest.raises(ValueError, match="nothing to store as 'x'"):
        stored_arrays("x", ("a",), 0, 4, rows)
