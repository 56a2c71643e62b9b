"""Pictures with captions to measure on: what is read, in which order, and what is left out."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diptych.data.captioned import captioned
from diptych.data.pictures import open_pictures
from diptych.data.trouble import TooManyBroken, Troubles


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, colour, size in (("b.png", "red", (20, 40)), ("a.jpg", "white", (64, 64)), ("c.webp", "blue", (9, 9))):
        Image.new("RGB", size, colour).save(tmp_path / name)
    (tmp_path / "b.txt").write_text(" a red wall \n")
    (tmp_path / "notes.md").write_text("not a picture")
    return tmp_path


def test_pictures_come_by_name_with_the_words_beside_them(folder: Path) -> None:
    troubles = Troubles()
    found = captioned(open_pictures(folder), 16, troubles)
    assert (found.pictures.shape, found.pictures.dtype) == ((3, 3, 16, 16), np.uint8)
    assert found.captions == ["", "a red wall", ""]
    assert found.pictures[1].mean((1, 2)).tolist() == [255, 0, 0]
    assert (troubles.seen, troubles.count) == (3, 0)


def test_the_middle_square_is_taken(tmp_path: Path) -> None:
    picture = Image.new("RGB", (60, 20), "black")
    picture.paste("white", (20, 0, 40, 20))
    picture.save(tmp_path / "wide.png")
    assert captioned(open_pictures(tmp_path), 20, Troubles()).pictures.min() == 255


def test_what_cannot_be_read_is_skipped_and_named(folder: Path) -> None:
    (folder / "broken.png").write_bytes(b"no picture")
    troubles = Troubles()
    assert len(captioned(open_pictures(folder), 16, troubles).captions) == 3
    assert str(troubles).startswith(f"skipped 1 of 4: {folder / 'broken.png'}: ")
    with pytest.raises(TooManyBroken, match=r"broken\.png"):
        captioned(open_pictures(folder), 16, Troubles(few=0))


def test_a_set_without_a_whole_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="none of the pictures can be read"):
        captioned(open_pictures(tmp_path), 16, Troubles())
