"""Pictures at the door: what comes in is checked, what goes out says how it was made."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.image.photo import open_picture, read_facts, save_png, to_bytes, to_picture, to_tensor


def test_bytes_come_back_bit_for_bit() -> None:
    array = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(to_picture(to_tensor(Image.fromarray(array)))), array)


def test_values_outside_are_cut_off() -> None:
    assert to_bytes(torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0])).tolist() == [0, 0, 128, 255, 255]


def test_a_png_carries_how_it_was_made(tmp_path: Path) -> None:
    facts = {"prompt": "a cat – ein Kätzchen 🐱", "seed": 2**40, "steps": 30}
    save_png(Image.new("RGB", (4, 4), "red"), tmp_path / "cat.png", facts)
    assert read_facts(tmp_path / "cat.png") == facts


def test_pictures_of_every_kind_become_rgb(tmp_path: Path) -> None:
    """Transparency lies on white, and a camera's orientation is obeyed."""
    clear = Image.new("RGBA", (2, 3), (255, 0, 0, 0))
    clear.save(tmp_path / "clear.png")
    assert open_picture(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
    Image.new("L", (2, 3), 7).save(tmp_path / "grey.bmp")
    assert open_picture(tmp_path / "grey.bmp").mode == "RGB"
    turned = Image.new("RGB", (2, 3))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert open_picture(tmp_path / "turned.jpg").size == (3, 2)


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n then nothing"])
def test_what_is_no_picture_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(ValueError, match="is not a picture that can be read") as caught:
        open_picture(tmp_path / "x.png")
    assert "\n" not in str(caught.value)


def test_a_truncated_picture_is_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "x.png")
    (tmp_path / "x.png").write_bytes((tmp_path / "x.png").read_bytes()[:3000])
    with pytest.raises(ValueError, match="is not a picture that can be read"):
        open_picture(tmp_path / "x.png")


def test_a_missing_picture_and_one_of_others_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no picture at"):
        open_picture(tmp_path / "none.png")
    Image.new("RGB", (2, 2)).save(tmp_path / "plain.png")
    with pytest.raises(ValueError, match="does not say how it was made"):
        read_facts(tmp_path / "plain.png")
