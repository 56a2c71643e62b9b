"""The judge: its form with tiny random networks, its eyesight with real scenes that nothing was trained with."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from diptych.core import weights
from diptych.data.scenes import ATTRIBUTES
from diptych.evaluate.judge import card_accuracy, measure_judge, open_judge
from diptych.image.judge import Judge, JudgeConfig
from diptych.models import bundled, open_model

HEADS = {"shape": ("disc", "square", "none"), "colour": ("red", "blue")}


@pytest.fixture
def tiny() -> Judge:
    torch.manual_seed(0)
    return Judge(JudgeConfig(HEADS, size=16, widths=(8, 16))).eval()


def test_one_row_of_logits_a_picture_for_every_attribute(tiny: Judge) -> None:
    logits = tiny(torch.rand(5, 3, 16, 16))
    assert {name: tuple(rows.shape) for name, rows in logits.items()} == {"shape": (5, 3), "colour": (5, 2)}


def test_a_picture_is_judged_alike_alone_and_in_a_batch(tiny: Judge) -> None:
    pictures = torch.rand(4, 3, 16, 16) * 2 - 1
    together, alone = tiny(pictures), tiny(pictures[2:3])
    for name in HEADS:
        torch.testing.assert_close(together[name][2:3], alone[name], atol=1e-5, rtol=0)


def test_larger_pictures_are_averaged_by_area(tiny: Judge) -> None:
    """Every pixel doubled: the average is the small picture again, so the judgement is the same."""
    small = torch.rand(2, 3, 16, 16)
    large = small.repeat_interleave(3, 2).repeat_interleave(3, 3)
    for name in HEADS:
        torch.testing.assert_close(tiny(large)[name], tiny(small)[name], atol=1e-5, rtol=1e-4)


def test_reading_names_the_likeliest_value_of_each_picture(tiny: Judge) -> None:
    pictures = torch.rand(70, 3, 16, 16)  # more than one part of 64
    logits = tiny(pictures)
    read = tiny.read(pictures)
    assert [words["shape"] for words in read] == [HEADS["shape"][k] for k in logits["shape"].argmax(1).tolist()]
    assert tiny.read(pictures[:0]) == []


def test_a_judge_learns_to_tell_two_colours() -> None:
    """The objective's own gradient moves every head: a few steps separate what is trivially separate."""
    torch.manual_seed(1)
    judge = Judge(JudgeConfig({"colour": ("red", "blue")}, size=16, widths=(8,)))
    truth = torch.arange(16) % 2
    pictures = torch.rand(16, 3, 16, 16) * 0.2
    pictures[truth == 0, 0] += 0.7
    pictures[truth == 1, 2] += 0.7
    optimizer = torch.optim.Adam(judge.parameters(), 0.01)
    for _ in range(20):
        loss = torch.nn.functional.cross_entropy(judge(pictures)["colour"], truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert [words["colour"] for words in judge.read(pictures)] == ["red", "blue"] * 8


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": 64}, "must have 'heads'"),
        ({"heads": {"a": ["x"]}}, "at least two values"),
        ({"heads": {"a": ["x", "y"]}, "widths": [12]}, "multiples of 8"),
        ({"heads": {"a": ["x", "y"]}, "size": 30}, "must be a multiple of 8"),
        ({"heads": {"a": ["x", "y"]}, "width": [8]}, "did you mean 'widths'"),
    ],
)
def test_a_wrong_config_is_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        JudgeConfig.from_dict(values)


def test_a_checkpoint_comes_back_as_it_was(tiny: Judge, tmp_path: Path) -> None:
    weights.save(tmp_path / "tiny", {"panel": "judge", "judge": tiny.config.to_dict()}, tiny.state_dict())
    again = open_judge(tmp_path / "tiny", device="cpu")
    assert again.config == tiny.config
    pictures = torch.rand(3, 3, 16, 16)
    torch.testing.assert_close(again(pictures)["shape"], tiny(pictures)["shape"])


def test_another_model_is_not_taken_for_a_judge(tmp_path: Path) -> None:
    weights.save(tmp_path / "other", {"panel": "text"}, {"a": torch.zeros(1)})
    with pytest.raises(ValueError, match="is not a judge's checkpoint"):
        open_judge(tmp_path / "other")


# ---- the one that is shipped ------------------------------------------------------------------------------------


def test_the_shipped_judge_reads_real_scenes_that_it_never_saw(
    real_scenes: list[tuple[dict[str, str], Image.Image]],
) -> None:
    """All five attributes of all twelve, half of them combinations that no training picture showed."""
    assert open_judge().read_pictures([picture for _, picture in real_scenes]) == [truth for truth, _ in real_scenes]


def test_the_shipped_judge_is_not_fooled_by_softness(real_scenes: list[tuple[dict[str, str], Image.Image]]) -> None:
    """What an autoencoder does to edges: half the size and back."""
    soft = [picture.resize((64, 64)).resize((128, 128)) for _, picture in real_scenes]
    assert open_judge().read_pictures(soft) == [truth for truth, _ in real_scenes]


def test_the_shipped_judge_is_small_and_knows_the_words_of_the_scenes() -> None:
    judge = open_judge()
    assert judge.config.heads == ATTRIBUTES
    assert sum(parameter.numel() for parameter in judge.parameters()) < 400_000
    assert (bundled()["judge"] / "model.safetensors").stat().st_size < 1_000_000


def test_its_card_says_at_least_98_percent_of_each_attribute() -> None:
    accuracy = card_accuracy()
    assert accuracy["pictures"] >= 1000
    assert min(accuracy[name] for name in (*ATTRIBUTES, "mean")) >= 0.98


def test_a_judge_is_no_model_of_a_panel() -> None:
    with pytest.raises(ValueError, match=r"'judge' neither writes nor paints.*diptych evaluate MODEL --on scenes"):
        open_model("judge")


def test_without_sprites_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DIPTYCH_DATA", raising=False)
    with pytest.raises(ValueError, match="DIPTYCH_DATA is not set"):
        measure_judge(open_judge(), 2)
