"""Contact sheets and pages: every prompt in its column, every step in its row, whatever else lies in the folder."""

import json
from pathlib import Path

import pytest
from PIL import Image

from diptych.train.samples import MOST, contact_sheet, page, refresh, save_pictures, save_texts

PROMPTS = ["a red square", "a green square", "a blue square", "a white square", "a black square"]
COLOURS = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (255, 255, 255), (0, 0, 0)]


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    (tmp_path / "samples").mkdir()
    return tmp_path / "samples"


def paint(samples: Path, *steps: int, prompts: list[str] = PROMPTS) -> None:
    for step in steps:
        squares = [Image.new("RGB", (32, 32), colour) for colour in COLOURS[: len(prompts)]]
        save_pictures(samples, step, squares, prompts)


def rows_of(sheet: Image.Image, tile: int = 192) -> list[list[tuple[int, ...]]]:
    """The colours in the middle of each tile, found from the sheet alone: from the right and from below."""
    width, height = sheet.size
    columns = [width - 18 - tile // 2 - place * (tile + 6) for place in range(len(COLOURS))][::-1]
    lines = range(height - 18 - tile // 2, tile // 2, -(tile + 6))
    return [[sheet.getpixel((x, y)) for x in columns] for y in list(lines)[::-1]]


def test_a_row_is_a_step_and_a_column_a_prompt(samples: Path) -> None:
    paint(samples, 10, 200)
    sheet = contact_sheet(samples)
    assert sheet is not None
    assert rows_of(sheet) == [COLOURS, COLOURS]


def test_a_grid_without_its_prompts_stands_in_its_row_as_a_whole(samples: Path) -> None:
    paint(samples, 10)
    wide = contact_sheet(samples)
    (samples / "prompts.json").unlink()
    whole = contact_sheet(samples)
    assert wide is not None
    assert whole is not None
    assert whole.height < wide.width
    assert whole.getpixel((whole.width - 20, 40)) == COLOURS[3], "the grid's right upper corner"
    for damaged in (
        "{",
        "[]",
        '{"prompts": 3}',
        '{"prompts": ["a"], "columns": 0}',
        '{"prompts": ["a"], "columns": 7}',
    ):
        (samples / "prompts.json").write_text(damaged)
        again = contact_sheet(samples)
        assert again is not None
        assert again.size == whole.size


def test_a_broken_picture_is_left_out(samples: Path) -> None:
    paint(samples, 10, 20)
    two = contact_sheet(samples)
    (samples / "step-00000015.png").write_bytes(b"\x89PNG\r\n")
    (samples / "step-00000016.png").write_bytes((samples / "step-00000010.png").read_bytes()[:60])
    (samples / "step-late.png").write_bytes(b"")
    four = contact_sheet(samples)
    assert two is not None
    assert four is not None
    assert two.tobytes() == four.tobytes()


def test_of_many_steps_the_first_and_the_last_are_among_those_shown(samples: Path) -> None:
    texts = [f"Once, {step}." for step in range(1, 31)]
    for step, text in enumerate(texts, 1):
        save_texts(samples, step, [text], ["Once"])
    shown = [line for line in page(samples).splitlines() if line.startswith("Step")]
    assert len(shown) == MOST
    assert (shown[0], shown[-1]) == ("Step 1", "Step 30")


def test_a_sheet_is_labelled_with_the_loss_at_its_steps(samples: Path) -> None:
    """The pixels of the label change with the loss, and with nothing else."""
    paint(samples, 10)
    plain = contact_sheet(samples)
    (samples.parent / "metrics.jsonl").write_text('{"step": 10, "loss": 0.5}\n{"step": 20, "loss": 9}\n')
    labelled = contact_sheet(samples)
    assert plain is not None
    assert labelled is not None
    assert plain.crop((110, 0, *plain.size)).tobytes() == labelled.crop((110, 0, *plain.size)).tobytes()
    assert plain.tobytes() != labelled.tobytes()


def test_a_page_shows_for_each_prompt_what_was_written_at_each_step(samples: Path) -> None:
    lines = [{"step": 5, "loss": 4.0}, {"step": 10, "loss": 2.0}, {"step": 20, "loss": 1.0}]
    (samples.parent / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    save_texts(samples, 10, ["Once upon zz", "Tom ran.\n\nThe end."], ["Once upon", "Tom"])
    save_texts(samples, 20, ["Once upon a time", "Tom sat."], ["Once upon", "Tom"])
    assert page(samples) == (
        "# The same prompts across the training\n\n"
        "## Once upon\n\nStep 10, loss 3\n\n> **Once upon** zz\n\nStep 20, loss 2.33\n\n> **Once upon** a time\n\n"
        "## Tom\n\nStep 10, loss 3\n\n> **Tom** ran.\n>\n> The end.\n\nStep 20, loss 2.33\n\n> **Tom** sat.\n"
    )


def test_what_a_model_writes_is_not_read_as_markdown(samples: Path) -> None:
    wild = "# no heading\n* no item\n1. no list\n- no\n    no code\n<script> [a](b) `c` _d_\x1b[31m\\"
    (samples / "step-00000001.txt").write_text(wild)
    quoted = [line for line in page(samples).splitlines() if line.startswith(">")]
    assert quoted == [
        "> \\# no heading\\",
        "> \\* no item\\",
        "> 1\\. no list\\",
        "> \\- no\\",
        "> no code\\",
        "> \\<script\\> \\[a\\](b) \\`c\\` \\_d\\_ \\[31m\\\\",
    ]


def test_refresh_writes_what_there_are_samples_for(samples: Path) -> None:
    assert refresh(samples) == []
    paint(samples, 10)
    assert refresh(samples) == [samples / "sheet.png"]
    save_texts(samples, 10, ["Once"], ["On"])
    assert refresh(samples) == [samples / "sheet.png", samples / "page.md"]
    first = (samples / "sheet.png").read_bytes()
    assert refresh(samples)[0].read_bytes() == first, "a sheet is not a sample of the next one"


def test_pictures_and_prompts_must_fit(samples: Path) -> None:
    with pytest.raises(ValueError, match="2 pictures of one size and as many prompts are needed, not 1"):
        save_pictures(samples, 1, [Image.new("RGB", (8, 8))] * 2, ["a"])
    with pytest.raises(ValueError, match="of one size"):
        save_pictures(samples, 1, [Image.new("RGB", (8, 8)), Image.new("RGB", (8, 9))], ["a", "b"])
    with pytest.raises(ValueError, match="1 texts need as many prompts, not 2"):
        save_texts(samples, 1, ["a"], ["a", "b"])
    assert list(samples.iterdir()) == []
