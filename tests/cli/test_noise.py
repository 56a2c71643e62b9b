import math

import numpy as np
import pytest
from PIL import Image

from diptych.image.film import filmstrip


@pytest.fixture
def photo(folder):
    path = folder / "photo.jpg"
    Image.new("RGB", (600, 300), (250, 140, 35)).save(path)
    return path


def test_the_strip_has_as_many_pictures_as_asked_for(diptych, photo, folder):
    run = diptych("noise", photo, "--pictures", 5, "--seed", 1)
    assert run.status == 0, run.err
    with Image.open(folder / "photo-noise.png") as strip:
        assert strip.width >= 5 * 256
        assert strip.height >= 128
    assert run.out.splitlines()[-1].startswith("photo-noise.png: 5 pictures, ")


def test_the_table_agrees_with_the_ddpm_schedule(diptych, photo):
    """Against the product of 1 - beta, beta from 1e-4 to 0.02 in 1000 steps (Ho et al. 2020, sec. 4)."""
    rows = [line.split() for line in diptych("noise", photo, "--pictures", 5, "--seed", 1).out.splitlines()[1:6]]
    assert [int(row[0]) for row in rows] == [0, 250, 500, 750, 1000]
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    for row in rows[1:]:
        share = alpha_bar[int(row[0]) - 1]
        assert float(row[1]) == pytest.approx(math.sqrt(share), abs=1e-4)
        assert float(row[6]) == pytest.approx(10 * math.log10(share / (1 - share)), abs=0.06)


@pytest.mark.parametrize("path", ["rectified-flow:shift=3", "ddpm-linear:zero_snr=true"])
def test_a_path_may_end_in_nothing_but_noise(diptych, photo, path):
    status, out, _ = diptych("noise", photo, "--path", path, "--pictures", "3")
    assert status == 0
    assert out.splitlines()[3].split() == ["1000", "0.0000", "1.0000", "no", "signal", "-inf", "100", "%"]


def test_the_same_seed_makes_the_same_strip(diptych, photo, folder):
    for name in ("a.png", "b.png"):
        diptych("noise", photo, "--pictures", 3, "--seed", 4, "--out", name)
    assert (folder / "a.png").read_bytes() == (folder / "b.png").read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--path", "ddpm-liner"], "unknown path 'ddpm-liner'; did you mean"),
        (["--out", "no/a.png"], "the output folder 'no'"),
    ],
)
def test_a_wrong_setting_is_one_line_and_nothing_is_written(diptych, photo, folder, words, message):
    status, out, err = diptych("noise", photo, *words)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"diptych: {message}")
    assert [path.name for path in folder.iterdir()] == ["photo.jpg"]


def test_small_pictures_are_enlarged_without_blur():
    strip = filmstrip([[Image.new("RGB", (16, 16), "red")] * 2], [["one"], ["two"]])
    red = (np.asarray(strip) == (255, 0, 0)).all(-1)
    assert red.sum() == 2 * 144 * 144
