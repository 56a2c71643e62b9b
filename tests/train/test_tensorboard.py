"""Event files read back by TensorBoard itself: every figure once, at its step, also of a run that went on."""

import sys
from pathlib import Path

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diptych.train.samples import save_pictures, save_texts
from diptych.train.tensorboard import Board, require_tensorboard


def read(run: Path) -> EventAccumulator:
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return events


def test_a_run_that_went_on_has_every_step_once(tmp_path: Path) -> None:
    """20 steps, of which 12 were saved; the run goes on from there with other figures, and those count."""
    with Board(tmp_path) as board:
        for step in range(1, 21):
            board.log({"step": step, "loss": 1.0, "speed": 3})
    with Board(tmp_path, 12) as board:
        for step in range(13, 25):
            board.log({"step": step, "loss": 2.0})
        board.log({"step": 24, "validation/bits/a": 0.5})
    events = read(tmp_path)
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [
        (step, 1.0 if step <= 12 else 2.0) for step in range(1, 25)
    ]
    assert [(event.step, event.value) for event in events.Scalars("validation/bits/a")] == [(24, 0.5)]
    assert sorted(events.Tags()["scalars"]) == ["train/loss", "train/speed", "validation/bits/a"]


def test_samples_are_pictures_and_texts(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    save_pictures(tmp_path / "samples", 10, [Image.new("RGB", (16, 8), "red")] * 2, ["a", "b"])
    save_texts(tmp_path / "samples", 10, ["Once", "# Tom"], ["On", "To"])
    with Board(tmp_path) as board:
        board.log_samples(tmp_path / "samples", 10)
        board.log_samples(tmp_path / "samples", 20)  # nothing was sampled there
    events = read(tmp_path)
    (picture,) = events.Images("samples")
    assert (picture.step, picture.width, picture.height) == (10, 32, 8)
    (text,) = events.Tensors("samples/2/text_summary")
    assert text.tensor_proto.string_val[0] == b"    # Tom"


def test_without_the_package_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(
        ValueError, match=r"run.tensorboard needs the package tensorboard: pip install 'diptych\[train\]'"
    ):
        require_tensorboard()
