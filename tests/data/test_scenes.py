"""Scenes: the words agree with the truth, the held-out stay out, and a picture is a function of (seed, index)."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from diptych.data import canvas, folders, scenes, sprites
from diptych.data.scenes import ANIMALS, HELD_OUT, PLACES, STYLES, TIMES, WORN, Scene, compose, parse, sample_scene


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with a plain disc of its own colour for every sprite, so that no test needs the real ones."""
    rows = []
    for k, (style, side) in enumerate((("3d", 128), ("flat", 72))):
        folder = tmp_path / (sprites.FLUENT if style == "3d" else sprites.TWEMOJI)
        folder.mkdir()
        for n, name in enumerate(sprites.SPRITES.values()):
            sprite = Image.new("RGBA", (side, side))
            colour = (40 + 13 * n, 240 - 11 * n, 60 + 90 * k, 255)
            ImageDraw.Draw(sprite).ellipse((4, 4, side - 5, side - 5), fill=colour)
            file = f"{n}.png" if style == "3d" else f"{name}.png"
            sprite.save(folder / file)
            rows.append(f"{file}\t{name}\tstand-ins")
        (folder / "names.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
        rows.clear()
    monkeypatch.setenv("DIPTYCH_DATA", str(tmp_path))
    return tmp_path


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


# ---- words -----------------------------------------------------------------------------------------------------


def test_the_canonical_caption() -> None:
    assert Scene("fox", "glasses", "beach", "sunset", "3d").caption() == "a 3d fox wearing glasses on a beach at sunset"
    assert Scene("cat", "nothing", "forest", "night", "flat").caption() == "a flat cat in a forest at night"
    assert Scene("pig", "top hat", "snow", "day", "3d").caption() == "a 3d pig wearing a top hat in the snow by day"


def test_a_canonical_caption_says_the_whole_scene() -> None:
    """Reading a caption gives back the scene that was written; what is not worn is not named."""
    for scene in scenes.all_scenes():
        named = parse(scene.caption())
        assert ("worn" in named) == (scene.worn != "nothing")
        assert Scene(**({"worn": "nothing"} | named)) == scene


def test_captions_are_distinct() -> None:
    assert len({scene.caption() for scene in scenes.all_scenes()}) == len(scenes.all_scenes())


def test_random_wording_never_contradicts_the_scene() -> None:
    """Whatever a wording names is so: read it back and compare, for every scene, several times."""
    rng = np.random.default_rng(0)
    for scene in scenes.all_scenes():
        for _ in range(3):
            words = scenes.random_caption(scene, rng)
            for part, value in parse(words).items():
                assert getattr(scene, part) == value, (words, part)


def test_random_wording_is_clean_and_mostly_complete() -> None:
    rng = np.random.default_rng(1)
    drawn = [(scene, scenes.random_caption(scene, rng)) for scene in scenes.all_scenes()]
    for _, words in drawn:
        assert words == words.lower().strip()
        assert not any(mark in words for mark in ("  ", ".", " ,"))
        assert not words.endswith(",")
    needed = [{"animal", "place", "time"} | ({"worn"} if scene.worn != "nothing" else set()) for scene, _ in drawn]
    complete = np.mean([parts <= parse(words).keys() for parts, (_, words) in zip(needed, drawn, strict=True)])
    with_style = np.mean(["style" in parse(words) for _, words in drawn])
    assert 0.72 < complete < 0.88
    assert 0.5 < with_style < 0.66
    assert len({words for _, words in drawn}) > 0.9 * len(drawn)


@pytest.mark.parametrize(
    ("prompt", "named"),
    [
        ("a beach at sunset", {"place": "beach", "time": "sunset"}),
        (
            "At night, a Fox in the forest with a crown",
            {"animal": "fox", "worn": "crown", "place": "forest", "time": "night"},
        ),
        ("a cat wearing sunglasses", {"animal": "cat", "worn": "sunglasses"}),
        ("a bear with eyeglasses on a sunny day", {"animal": "bear", "worn": "glasses", "time": "day"}),
        ("a concatenation of seasons", {}),
        ("", {}),
    ],
)
def test_reading_a_prompt(prompt: str, named: dict[str, str]) -> None:
    assert parse(prompt) == named


def test_an_unknown_value_is_refused() -> None:
    with pytest.raises(ValueError, match=r"animal must be one of cat, .* not 'horse'"):
        Scene("horse", "nothing", "beach", "day", "3d")


# ---- what is held out ------------------------------------------------------------------------------------------


def test_one_combination_in_twenty_is_held_out() -> None:
    total = len(ANIMALS) * len(WORN) * len(PLACES) * len(TIMES)
    assert len(HELD_OUT) == round(total / 20)
    assert ("cat", "sunglasses", "beach", "sunset") in HELD_OUT
    assert len(scenes.held_out_scenes()) == 2 * len(HELD_OUT)
    assert sorted(scenes.training_scenes() + scenes.held_out_scenes()) == sorted(scenes.all_scenes())


def test_every_pair_of_attributes_is_in_training() -> None:
    """What is held out is the combination, never a thing or a pair of things: so asking for it is fair."""
    parts = list(scenes.ATTRIBUTES.values())
    rows = [(s.animal, s.worn, s.place, s.time, s.style) for s in scenes.training_scenes()]
    for i, j in combinations(range(5), 2):
        assert len({(row[i], row[j]) for row in rows}) == len(parts[i]) * len(parts[j])


# ---- pictures --------------------------------------------------------------------------------------------------


def test_a_picture_is_a_function_of_seed_and_index(stand_ins: Path) -> None:
    scene = Scene("cat", "scarf", "meadow", "sunset", "3d")
    first = pixels(compose(scene, 3, 4))
    compose(scene, 9, 9)
    assert np.array_equal(first, pixels(compose(scene, 3, 4)))
    assert not np.array_equal(first, pixels(compose(scene, 3, 5)))
    assert not np.array_equal(first, pixels(compose(scene, 4, 4)))


@pytest.mark.parametrize("style", STYLES)
def test_each_attribute_changes_the_picture(stand_ins: Path, style: str) -> None:
    """One attribute changed and the random numbers kept: another picture, by more than a few pixels."""
    plain = {"animal": "dog", "worn": "nothing", "place": "beach", "time": "day", "style": style}
    base = pixels(compose(Scene(**plain), 1, 2))
    for part, known in scenes.ATTRIBUTES.items():
        for value in known:
            if value != plain[part]:
                other = pixels(compose(Scene(**(plain | {part: value})), 1, 2))
                assert (np.abs(other - base).max(2) > 20).sum() > 100, value


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("place", PLACES)
def test_night_is_darker_than_day(stand_ins: Path, place: str, style: str) -> None:
    day, night = (
        pixels(compose(Scene("fox", "nothing", place, time, style), 1, 1)).mean() for time in ("day", "night")
    )
    assert night < 0.7 * day


@pytest.mark.parametrize("size", [32, 64, 128, 200])
def test_the_size_asked_for(stand_ins: Path, size: int) -> None:
    picture = compose(Scene("frog", "crown", "sea", "night", "flat"), 0, 0, size)
    assert (picture.size, picture.mode) == ((size, size), "RGB")


def test_size_must_be_positive(stand_ins: Path) -> None:
    with pytest.raises(ValueError, match="size must be at least 1, not 0"):
        compose(Scene("frog", "crown", "sea", "night", "flat"), 0, 0, 0)


def test_samples_are_repeatable_true_and_never_held_out(stand_ins: Path) -> None:
    for index in range(60):
        scene, picture, words = sample_scene(5, index)
        again = sample_scene(5, index)
        assert (scene, words) == (again[0], again[2])
        assert np.array_equal(pixels(picture), pixels(again[1]))
        assert picture.size == (canvas.SIDE, canvas.SIDE)
        assert not scenes.is_held_out(scene)
        assert all(getattr(scene, part) == value for part, value in parse(words).items())


def test_a_missing_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene("cat", "nothing", "beach", "day", "3d")
    monkeypatch.setenv("DIPTYCH_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=r"DIPTYCH_DATA.*emoji_fluent_3d_128"):
        compose(scene, 0, 0)
    monkeypatch.setenv("DIPTYCH_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"DIPTYCH_DATA must name a folder"):
        folders.root()
    monkeypatch.delenv("DIPTYCH_DATA")
    with pytest.raises(ValueError, match="DIPTYCH_DATA is not set"):
        compose(scene, 0, 0)


def test_a_missing_sprite_is_named(stand_ins: Path) -> None:
    (stand_ins / sprites.TWEMOJI / "lion.png").unlink()
    with pytest.raises(ValueError, match=r"DIPTYCH_DATA: .*no picture of 'lion'"):
        compose(Scene("lion", "nothing", "city", "day", "flat"), 0, 0)
