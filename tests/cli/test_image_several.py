"""`diptych image` with several pictures in one: films between prompts and seeds, grids, variations."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.nn.modules.module import register_module_forward_hook

from diptych.image.autoencoder import Encoder
from diptych.image.encoders import TextEncoder
from diptych.image.photo import read_facts
from diptych.image.unet import UNet


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"), dtype=np.int16)


def frames_of(path):
    with Image.open(path) as moving:
        found = []
        for number in range(moving.n_frames):
            moving.seek(number)
            found.append(np.asarray(moving.convert("RGB"), dtype=np.int16))
        return found


@pytest.fixture
def again(diptych, tiny_brush):
    def run(name, out, *words):
        done = diptych("image", "--like", name, "--model", tiny_brush, "--out", out, *words)
        assert done.status == 0, done.err
        return done

    return run


def test_a_film_goes_from_one_picture_to_the_other(paint, diptych, tiny_brush, again):
    """Its ends are the two pictures alone, bit for bit, and each of its PNGs is painted again by itself."""
    words = ("--steps", 3, "--seed", 1)
    run = paint(*words, "--to-prompt", "a beach", "--to-seed", 2, "--frames", 4, "--out", "film")
    assert run.out.startswith("film: 4 frames, 32 x 32, 12 a second, seed 1, ")
    assert "ffmpeg -framerate 12 -i film/%04d.png" in run.err
    assert sorted(path.name for path in Path("film").iterdir()) == [f"000{number}.png" for number in (1, 2, 3, 4)]
    paint(*words, "--out", "one.png")
    diptych(
        "image", "a beach", "--model", tiny_brush, "--dtype", "float32", "--steps", 3, "--seed", 2, "--out", "two.png"
    )
    assert np.array_equal(pixels("film/0001.png"), pixels("one.png"))
    assert np.array_equal(pixels("film/0004.png"), pixels("two.png"))
    again("film/0002.png", "second.png")
    assert np.array_equal(pixels("film/0002.png"), pixels("second.png"))
    assert read_facts("film/0002.png") == read_facts("second.png")


@pytest.mark.parametrize("ending", ["webp", "gif"])
def test_a_moving_picture_moves_and_is_made_again(paint, again, ending):
    words = ("--steps", 2, "--seed", 1, "--to-seed", 2, "--frames", 3, "--fps", 5)
    run = paint(*words, "--out", f"film.{ending}")
    assert run.status == 0, run.err
    frames = frames_of(f"film.{ending}")
    assert len(frames) == 3
    assert np.abs(frames[0] - frames[2]).mean() > 3
    paint(*words, "--out", "film")
    exact = [pixels(f"film/000{number}.png") for number in (1, 2, 3)]
    for number, frame in enumerate(frames):  # both formats are lossy, yet each frame is nearest to its own
        assert min(range(3), key=lambda place: np.abs(frame - exact[place]).mean()) == number
    again(f"film.{ending}", f"twice.{ending}")
    assert all(np.array_equal(*pair) for pair in zip(frames, frames_of(f"twice.{ending}"), strict=True))
    with Image.open(f"film.{ending}") as moving:
        assert moving.info.get("loop") == 0
    again(f"film.{ending}", f"short.{ending}", "--frames", 2)
    assert len(frames_of(f"short.{ending}")) == 2


def test_a_film_without_a_name_is_named_after_prompt_and_seed(paint, folder):
    assert paint("--steps", 1, "--seed", 1, "--to-seed", 2, "--frames", 2).out.startswith("a-cat-1.webp: 2 frames")
    assert [path.name for path in folder.iterdir()] == ["a-cat-1.webp"]


def test_a_grid_has_a_picture_for_each_pair_and_is_made_again(paint, again):
    """Each cell is the picture that its settings paint alone."""
    run = paint("--seed", 1, "--grid", "guidance_scale=1,4", "--grid", "steps=1,2,3", "--out", "grid.png")
    assert run.out.startswith("grid.png: 6 pictures in 3 x 2, ")
    assert read_facts("grid.png")["grid"] == {"guidance_scale": [1.0, 4.0], "steps": [1, 2, 3]}
    paint("--seed", 1, "--guidance", 4, "--steps", 2, "--out", "cell.png")
    cell = np.kron(pixels("cell.png"), np.ones((5, 5, 1), dtype=np.int16))  # small pictures are shown enlarged
    assert is_inside(cell, pixels("grid.png"))
    again("grid.png", "twice.png")
    assert np.array_equal(pixels("grid.png"), pixels("twice.png"))
    assert read_facts("grid.png") == read_facts("twice.png")


@pytest.fixture
def calls():
    """How often each network was called since: the prompts', the pictures' and the one that predicts."""
    counted = Counter({TextEncoder: 0, Encoder: 0, UNet: 0})
    hook = register_module_forward_hook(lambda network, *_: counted.update({type(network)} & counted.keys()))
    yield counted
    hook.remove()


@pytest.mark.parametrize(
    ("words", "pictures"),
    [
        (["--grid", "guidance_scale=2,4", "--grid", "negative_prompt=a dog|a beach"], 4),
        (["--to-seed", "2", "--frames", "3"], 3),
        (["--variations", "3"], 3),
        ([], 1),
    ],
)
def test_what_is_checked_first_is_painted_and_nothing_is_encoded_twice(paint, calls, words, pictures):
    """A prompt and a negative one for each picture, what it begins from once, and its two steps."""
    Image.new("RGB", (32, 32), "orange").save("photo.png")
    distance = ["--distance", 1] if "--variations" in words else ["--strength", 1]
    run = paint("--seed", 1, "--steps", 2, "--from", "photo.png", *words, *distance)
    assert run.status == 0, run.err
    assert calls == {TextEncoder: 2 * pictures, Encoder: pictures, UNet: 2 * pictures}


@pytest.mark.parametrize(
    "words",
    [
        ["--grid", "negative_prompt=a dog|" + "cat " * 50],
        ["--grid", "steps=1,2", "--grid", "guidance_scale=2,-1"],
        ["--to-prompt", "cat " * 50, "--frames", "3"],
    ],
)
def test_what_cannot_be_painted_is_refused_before_the_first_picture(paint, calls, words):
    run = paint("--seed", 1, "--steps", 2, *words)
    assert (run.status, run.out) == (2, "")
    assert calls[UNet] == 0


def is_inside(part, whole):
    """Whether `part` is somewhere in `whole`, pixel for pixel."""
    height, width = part.shape[:2]
    corners = np.argwhere((whole == part[0, 0]).all(-1))
    return any(np.array_equal(whole[y : y + height, x : x + width], part) for y, x in corners)


def test_a_grid_is_over_any_setting_also_over_words(paint, again):
    words = ("--seed", 1, "--steps", 2, "--to-seed", 5)
    run = paint(*words, "--grid", "prompt=a cat|a dog, asleep", "--grid", "share=0,0.5,1", "--out", "a.png")
    assert run.status == 0, run.err
    again("a.png", "b.png")
    assert np.array_equal(pixels("a.png"), pixels("b.png"))
    sampled = paint("--seed", 1, "--steps", 2, "--grid", "sampler=ddim,heun", "--out", "c.png")
    assert sampled.status == 0, sampled.err
    again("c.png", "d.png")
    assert np.array_equal(pixels("c.png"), pixels("d.png"))
    assert read_facts("c.png")["nodes"] is None  # each sampler's own
    assert (
        paint("--seed", 1, "--steps", 2, "--grid", "guidance_interval=0:,0.5:4", "--grid", "height=16,32").status == 0
    )


def test_variations_lie_around_a_picture(paint, again):
    paint("--seed", 1, "--steps", 4, "--out", "cat.png")
    for distance in (0.1, 0.9):
        run = again("cat.png", f"near-{distance}.png", "--variations", 3, "--distance", distance)
        assert run.out.splitlines()[-1].startswith(f"near-{distance}-3.png: 3 pictures, each 32 x 32, seed 1")

    def far(name):
        return np.abs(pixels(name) - pixels("cat.png")).mean()

    near, away = ([far(f"near-{distance}-{number}.png") for number in (1, 2, 3)] for distance in (0.1, 0.9))
    assert 0 < max(near) < min(away)
    assert not np.array_equal(pixels("near-0.1-1.png"), pixels("near-0.1-2.png"))
    again("near-0.1-2.png", "again.png")
    assert np.array_equal(pixels("near-0.1-2.png"), pixels("again.png"))
    again("near-0.1-2.png", "further.png", "--variations", 1, "--to-seed", 50)  # of a variation
    assert read_facts("further.png")["turns"] == [[3, 0.1], [50, 0.3]]


def test_variations_of_a_photo_are_painted_over_it(paint, again):
    patches = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(patches).resize((32, 32)).save("photo.png")
    run = paint(
        "--seed", 1, "--steps", 10, "--from", "photo.png", "--variations", 2, "--distance", 0.2, "--out", "v.png"
    )
    assert run.status == 0, run.err
    assert [read_facts(f"v-{number}.png")["sample"] for number in (1, 2)] == [0, 1]
    assert read_facts("v-1.png")["strength"] == 0.2
    again("v-2.png", "again.png")
    assert np.array_equal(pixels("v-2.png"), pixels("again.png"))


def test_json_says_which_picture_a_step_is_of(paint):
    out = paint("--seed", 1, "--steps", 2, "--grid", "guidance_scale=1,2", "--json", "--out", "g.png").out
    *steps, last = map(json.loads, out.splitlines())
    assert [step["of"] for step in steps] == ["picture 1 of 2"] * 2 + ["picture 2 of 2"] * 2
    assert last["images"] == ["g.png"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--frames", "4"], "--frames lie on the way to --to-prompt or --to-seed: name one"),
        (["--share", "0.4"], "--share is of the way to --to-prompt or --to-seed: name one"),
        (["--to-seed", "2", "--frames", "1"], "frames must be from 2 to 1000, not 1"),
        (["--to-seed", "2", "--fps", "0"], "fps must be a number from 1 to 60, not 0"),
        (["--to-seed", "2", "--frames", "4", "--share", "0.4"], "--frames go all the way"),
        (["--to-seed", "2", "--out", "film.png"], "'film.png' must end in .webp or .gif"),
        (["--to-seed", "2", "--out", "full"], "'full' is not empty; name a folder that is not there yet"),
        (["--to-seed", "2", "--out", "."], "'.' is not empty"),
        (["--to-seed", "2", "--trace", "a.trace"], "--trace is of one painting; leave out --frames"),
        (["--to-seed", "2", "-n", "2"], "-n does not go with --frames"),
        (["--to-prompt", "cat " * 50], "the prompt is too long"),
        (["--grid", "steps"], "a grid needs a setting and its values, like steps=10,20,40, not 'steps'"),
        (["--grid", "step=1,2"], "unknown setting of a grid 'step'; did you mean 'steps'"),
        (["--grid", "steps=1,b"], "steps must be a whole number, not 'b'"),
        (["--grid", "steps=1,1"], "the grid's steps has a value twice"),
        (["--grid", "steps=1,0"], "steps must be a whole number from 1 to 1000, not 0"),
        (["--grid", "seed=1", "--grid", "seed=2"], "both sides of the grid are seed"),
        (["--grid", "seed=1", "--grid", "steps=2", "--grid", "height=32"], "a grid has two sides; 3"),
        (["--grid", "seed=1,2", "--explain"], "--explain is of one painting; leave out --grid"),
        (["--grid", "seed=1,2", "--to-seed", "2", "--frames", "3"], "choose one of --frames, --grid"),
        (["--variations", "0"], "variations must be from 1 to 64, not 0"),
        (["--variations", "2", "--distance", "0"], "distance must be a number above 0 and up to 1, not 0"),
        (["--distance", "0.5"], "--distance is of --variations"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_a_wrong_setting_is_one_line_and_nothing_is_written(paint, folder, words, message):
    (folder / "full").mkdir()
    (folder / "full" / "mine.txt").write_text("mine")
    status, out, err = paint("--seed", 1, *words)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"diptych: {message}")
    assert [path.name for path in folder.iterdir()] == ["full"]
    assert (folder / "full" / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "words", [["--to-seed", "2", "--frames", "3"], ["--to-seed", "2", "--out", "film"], ["--grid", "steps=2,3"]]
)
def test_an_interruption_leaves_no_half_file(paint, folder, monkeypatch, words):
    """Ctrl-C in the middle of the second picture."""
    from diptych.image.runner import ImageRunner

    steps = []
    advance = ImageRunner.advance

    def interrupted(self, jobs):
        steps.append(1)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return advance(self, jobs)

    monkeypatch.setattr(ImageRunner, "advance", interrupted)
    run = paint("--seed", 1, "--steps", 3, *words)
    assert (run.status, run.out) == (1, "")
    assert "interrupted; nothing was written" in run.err
    assert list(folder.iterdir()) == []
