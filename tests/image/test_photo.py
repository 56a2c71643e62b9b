"""Pictures at the door: what comes in is checked, what goes out says how it was made."""

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.image.photo import (
    LARGEST_PIXELS,
    decode_picture,
    open_picture,
    picture_size,
    read_facts,
    save_png,
    to_bytes,
    to_picture,
    to_tensor,
)


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


def test_sixteen_bits_of_grey_become_eight(tmp_path: Path) -> None:
    """0..65535 to 0..255 in proportion; Pillow's own conversion would cut off at 255."""
    wide = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    expected = np.stack([np.arange(256, dtype=np.uint8).reshape(16, 16)] * 3, axis=-1)
    assert np.array_equal(np.asarray(open_picture(tmp_path / "wide.png")), expected)
    Image.fromarray(np.full((2, 2), 0.5, np.float32)).save(tmp_path / "fractions.tif")
    with pytest.raises(ValueError, match="fractions of no known range"):
        open_picture(tmp_path / "fractions.tif")


def test_palettes_and_inks_become_rgb(tmp_path: Path) -> None:
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 10, 200, 30])
    palette.save(tmp_path / "palette.png", transparency=0)
    assert open_picture(tmp_path / "palette.png").getpixel((1, 1)) == (10, 200, 30)
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "ink.jpg", quality=100)
    red = open_picture(tmp_path / "ink.jpg").getpixel((4, 4))
    assert isinstance(red, tuple)
    assert red[0] > 250
    assert max(red[1:]) < 5


def bomb(width: int, height: int) -> bytes:
    """A PNG of some bytes whose head promises a picture of any size."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    written = [struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(written)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_000, 60_000])
def test_a_bomb_is_refused_before_it_unfolds(side: int, tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(bomb(side, side))
    with pytest.raises(ValueError, match=f"pixels; at most {LARGEST_PIXELS} are read"):
        open_picture(tmp_path / "bomb.png")
    with (tmp_path / "bomb.png").open("rb") as file, pytest.raises(ValueError, match="at most"):
        picture_size(file)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_size_is_that_of_the_upright_picture(kind: str, orientation: int) -> None:
    """Against decoding it, for every format that carries an orientation."""
    turned, file = Image.new("RGB", (20, 30)), io.BytesIO()
    exif = turned.getexif()
    exif[0x0112] = orientation
    turned.save(file, kind, exif=exif)
    assert picture_size(io.BytesIO(file.getvalue())) == decode_picture(io.BytesIO(file.getvalue())).size
    assert picture_size(file) == ((30, 20) if orientation > 4 else (20, 30))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_whatever_is_wrong_with_a_picture_is_a_value_error(kind: str) -> None:
    """Bytes overwritten at random: decoders raise many things, and a reader must be able to skip the picture."""
    noise, file = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8), io.BytesIO()
    Image.fromarray(noise).save(file, kind)
    draw, said = np.random.default_rng(1), []
    for _ in range(150):
        data = bytearray(file.getvalue())
        for place in draw.integers(0, min(len(data), 400), 12):
            data[place] = draw.integers(0, 256)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                decode_picture(io.BytesIO(bytes(data)))
            except ValueError as error:
                said.append(str(error))
    assert len(said) > 10
    assert not any("\n" in message for message in said)
