import json
import shutil

import numpy as np
import pytest
from PIL import Image

from diptych.cli.explain_image import Look, noise_words, told_steps
from diptych.cli.preview import half_blocks
from diptych.image.photo import read_facts, save_png


def pixels(path):
    return np.asarray(Image.open(path))


def test_a_picture_is_named_after_its_prompt_and_seed_and_never_lost(paint, folder):
    run = paint("--seed", 7, "--steps", 2)
    assert run.status == 0
    assert run.out.startswith("a-cat-7.png: 32 x 32, seed 7, 2 steps of dpm++-2m, ")
    assert paint("--seed", 7, "--steps", 2).out.startswith("a-cat-7-2.png: ")
    assert np.array_equal(pixels("a-cat-7.png"), pixels("a-cat-7-2.png"))
    assert {path.name for path in folder.iterdir()} == {"a-cat-7.png", "a-cat-7-2.png"}


def test_a_picture_carries_how_it_was_made(paint):
    paint("--seed", 7, "--steps", 3, "--sampler", "euler", "--negative", "a dog", "--guidance", 3, "--out", "cat.png")
    facts = read_facts("cat.png")
    expected = {
        "prompt": "a cat",
        "negative_prompt": "a dog",
        "seed": 7,
        "sample": 0,
        "sampler": "euler",
        "steps": 3,
        "guidance_scale": 3.0,
        "model": "tiny-brush",
        "dtype": "float32",
    }
    assert {name: facts[name] for name in expected} == expected
    assert facts["nodes"] in ("karras", "uniform")
    assert facts["version"]


@pytest.mark.parametrize("words", [[], ["--sampler", "ddpm", "--nodes", "uniform"], ["-n", "3", "--dtype", "bfloat16"]])
def test_like_paints_a_picture_again_bit_for_bit(paint, diptych, tiny_brush, words):
    paint("--seed", 7, "--steps", 4, "--out", "cat.png", *words)
    name = "cat-2.png" if "-n" in words else "cat.png"
    run = diptych("image", "--like", name, "--model", tiny_brush, "--out", "again.png")
    assert run.status == 0, run.err
    assert np.array_equal(pixels(name), pixels("again.png"))
    assert read_facts("again.png") == read_facts(name)


def test_like_with_another_option_changes_only_that(paint, diptych, tiny_brush):
    paint("--seed", 7, "--steps", 4, "--out", "cat.png")
    diptych("image", "--like", "cat.png", "--model", tiny_brush, "--seed", 8, "--out", "other.png")
    before, after = read_facts("cat.png"), read_facts("other.png")
    assert {name for name in before if before[name] != after[name]} == {"seed"}


def test_like_says_when_model_or_version_differ(paint, diptych, tiny_brush):
    paint("--seed", 7, "--steps", 2, "--out", "cat.png")
    facts = read_facts("cat.png") | {"model": "brush-0", "version": "0.0.1"}
    save_png(Image.open("cat.png"), "old.png", facts)
    run = diptych("image", "--like", "old.png", "--model", tiny_brush, "--out", "new.png")
    assert "painted by model 'brush-0' then, by 'tiny-brush' now" in run.err
    assert "painted by diptych 0.0.1 then" in run.err


def test_a_picture_never_names_a_folder_to_load(paint, diptych, tiny_brush):
    paint("--seed", 7, "--steps", 2, "--out", "cat.png")
    save_png(Image.open("cat.png"), "evil.png", read_facts("cat.png") | {"model": str(tiny_brush)})
    run = diptych("image", "--like", "evil.png")
    assert run.status == 1
    assert "is not bundled; name its folder with --model" in run.err


def test_several_pictures_are_numbered(paint, folder):
    run = paint("--seed", 7, "--steps", 2, "-n", 3)
    assert run.out.splitlines()[:2] == ["a-cat-7-1.png", "a-cat-7-2.png"]
    assert run.out.splitlines()[2].startswith("a-cat-7-3.png: 3 pictures, each 32 x 32, seed 7")
    assert [read_facts(f"a-cat-7-{number}.png")["sample"] for number in (1, 2, 3)] == [0, 1, 2]


def test_json_is_one_object_a_line(paint):
    *steps, last = map(json.loads, paint("--seed", 7, "--steps", 3, "--json").out.splitlines())
    assert [step["index"] for step in steps] == [0, 1, 2]
    assert {"sigma", "alpha", "log_snr", "noise_share", "guidance_push"} < set(steps[0])
    assert (last["images"], last["seed"]) == (["a-cat-7.png"], 7)
    assert last["settings"]["prompt"] == "a cat"


def test_a_trace_becomes_a_film(paint, diptych):
    paint("--seed", 7, "--steps", 9, "--trace", "cat.trace")
    run = diptych("trace", "film", "cat.trace", "--pictures", 4)
    assert run.status == 0, run.err
    with Image.open("cat.png") as strip:
        assert strip.width > 4 * 144
        assert strip.height > 2 * 144
    with Image.open("cat.webp") as moving:
        assert 2 <= moving.n_frames <= 9  # equal frames in a row are stored as one that stays longer
    shown = diptych("trace", "show", "cat.trace").out.splitlines()
    assert shown[0].split() == ["step", "sigma", "alpha", "log", "snr", "noise", "guidance"]
    assert [line.split()[0] for line in shown[1:10]] == [str(number) for number in range(1, 10)]
    assert all(json.loads(line) for line in diptych("trace", "show", "cat.trace", "--json").out.splitlines())


def test_a_film_is_not_made_of_a_text(write, diptych, folder):
    write("--seed", 1, "--max-tokens", 3, "--trace", "a.trace")
    run = diptych("trace", "film", "a.trace")
    assert (run.status, run.err.count("\n")) == (1, 1)
    assert "is a text trace" in run.err
    assert [path.name for path in folder.iterdir()] == ["a.trace"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sampler", "dpm++-2"], "unknown sampler 'dpm++-2'; did you mean 'dpm++-2m'? Known: ddpm, ddim, euler,"),
        (["--nodes", "karas"], "unknown node rule 'karas'"),
        (["--steps", "0"], "steps must be a whole number from 1 to 1000, not 0"),
        (["--guidance", "nan"], "guidance_scale must be a finite number >= 0, not nan"),
        (["-n", "0"], "count must be a whole number from 1 to"),
        (["--out", "nowhere/cat.png"], "the output folder 'nowhere' does not exist"),
    ],
)
def test_a_wrong_setting_is_one_line_and_nothing_is_written(paint, folder, words, message):
    status, out, err = paint(*words)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"diptych: {message}")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(("prompt", "message"), [(" ", "the prompt is empty"), ("cat " * 50, "the prompt is too long")])
def test_a_prompt_that_cannot_be_is_refused(diptych, tiny_brush, folder, prompt, message):
    status, out, err = diptych("image", prompt, "--model", tiny_brush)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"diptych: {message}")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("command", [["noise", "cat.png"], ["image", "--like", "cat.png"]])
def test_a_file_that_is_no_picture_is_refused(diptych, folder, command):
    (folder / "cat.png").write_bytes(b"meow")
    status, out, err = diptych(*command)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert "'cat.png' is not a picture that can be read" in err
    assert [path.name for path in folder.iterdir()] == ["cat.png"]


def test_a_truncated_checkpoint_is_named(diptych, tiny_brush, folder):
    shutil.copytree(tiny_brush, folder / "cut")
    weights = folder / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    status, out, err = diptych("image", "a cat", "--model", "cut")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert "cut/model.safetensors' is damaged" in err
    assert [path.name for path in folder.iterdir()] == ["cut"]


def test_the_explanation_has_the_numbers_of_the_steps(paint):
    *told, last = paint("--seed", 7, "--steps", 30, "--explain").out.splitlines()
    story = " ".join(" ".join(told).split())
    assert story.startswith("It starts from static")
    assert "drawn with seed 7" in story
    for index in sorted(told_steps(30)):
        assert f"Step {index + 1} of 30: the picture " in story
    assert "guidance pushed it by" in story
    assert "The picture is finished" in story
    assert last.startswith("a-cat-7.png: ")


def test_a_look_names_colours_by_their_place():
    beach = np.zeros((96, 96, 3), dtype=np.uint8)
    beach[:32], beach[32:64], beach[64:] = (250, 140, 35), (45, 115, 215), (230, 205, 150)
    look = Look(Image.fromarray(beach))
    assert look.colours() == "the upper third is orange, the middle blue, the lower third sandy yellow"
    night = beach.copy()
    night[:32] = (22, 35, 95)
    assert Look(Image.fromarray(night)).news(look).startswith("the upper third turned from orange to dark blue")


def test_a_blurred_picture_looks_more_blurred_than_a_sharp_one():
    sharp = Image.fromarray((np.indices((128, 128)).sum(0) // 16 % 2 * 255).astype(np.uint8)).convert("RGB")
    blurred = sharp.resize((16, 16)).resize((128, 128))
    assert Look(blurred).edges < Look(sharp).edges
    assert Look(Image.new("RGB", (8, 8), "grey")).shape() == "hardly more than an even fog"


@pytest.mark.parametrize(
    ("share", "words"), [(1.0, "nothing but static"), (0.61, "still 61 % noise"), (0.05, "only 5.0 %")]
)
def test_noise_in_words(share, words):
    assert words in noise_words(share)


def test_a_preview_has_two_pixels_a_cell():
    picture = Image.new("RGB", (2, 2))
    for place, colour in enumerate([(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]):
        picture.putpixel((place % 2, place // 2), colour)
    text = half_blocks(picture, columns=2, rows=1)
    assert text.plain == "▀▀"
    colours = [(span.style.color.triplet.hex, span.style.bgcolor.triplet.hex) for span in text.spans]
    assert colours == [("#ff0000", "#0000ff"), ("#00ff00", "#ffffff")]
