"""`diptych image` from pictures, masks, in other sizes and in two passes; and all of it again with --like."""

import json

import numpy as np
import pytest
from PIL import Image

from diptych.image.photo import read_facts, save_png


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.fixture
def photo(folder):
    patches = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(patches).resize((32, 32)).save(folder / "photo.png")
    mask = Image.new("L", (32, 32), 0)
    mask.paste(255, (0, 0, 16, 32))
    mask.save(folder / "mask.png")
    return folder / "photo.png"


@pytest.fixture
def again(diptych, tiny_brush):
    """Paints a picture again and holds it against the first."""

    def run(name, *words):
        done = diptych("image", "--like", name, "--model", tiny_brush, "--out", f"again-{name}", *words)
        assert done.status == 0, done.err
        return np.array_equal(pixels(name), pixels(f"again-{name}")) and read_facts(name) == read_facts(f"again-{name}")

    return run


@pytest.mark.parametrize(
    "words",
    [
        ["--size", "48x24"],
        ["--height", "16", "--negative", "a dog"],
        ["--from", "photo.png"],
        ["--from", "photo.png", "--strength", "0.3", "-n", "2"],
        ["--from", "photo.png", "--mask", "mask.png", "--sampler", "euler-ancestral"],
        ["--from", "photo.png", "--outpaint", "left=8,bottom=16"],
        ["--from", "photo.png", "--mask", "mask.png", "--outpaint", "8"],
        ["--enlarge", "1.5"],
        ["--from", "photo.png", "--mask", "mask.png", "--enlarge", "2", "--enlarge-strength", "0.6", "-n", "2"],
        ["--to-prompt", "a dog", "--to-seed", "9", "--share", "0.4"],
        ["--rescale", "0.5", "--guidance-interval", "0.2,", "--threshold", "0.9", "--parallel", "0.2"],
        ["--limit", "0.5", "--momentum", "-0.4", "--guidance-interval", "0.1,9"],
    ],
    ids=" ".join,
)
def test_what_was_painted_in_any_way_is_painted_again_bit_for_bit(paint, photo, again, words):
    run = paint("--seed", 7, "--steps", 4, "--out", "cat.png", *words)
    assert run.status == 0, run.err
    assert again("cat-2.png" if "-n" in words else "cat.png")


def test_a_size_is_said_in_one_word_or_two(paint):
    assert " 48 x 24," in paint("--seed", 7, "--steps", 1, "--size", "48x24", "--out", "a.png").out
    paint("--seed", 7, "--steps", 1, "--width", 48, "--height", 24, "--out", "b.png")
    assert np.array_equal(pixels("a.png"), pixels("b.png"))


def test_a_mask_keeps_what_is_black_and_the_size_follows_the_picture(paint, photo):
    Image.open(photo).resize((48, 32)).save("wide.png")
    paint("--seed", 7, "--steps", 2, "--from", "wide.png", "--mask", "mask48.png", "--out", "cat.png")
    mask = Image.new("L", (48, 32), 0)
    mask.paste(255, (0, 0, 24, 32))
    mask.save("mask48.png")
    run = paint("--seed", 7, "--steps", 2, "--from", "wide.png", "--mask", "mask48.png", "--out", "cat.png")
    assert run.status == 0, run.err
    assert np.array_equal(pixels("cat.png")[:, 24:], pixels("wide.png")[:, 24:])
    assert not np.array_equal(pixels("cat.png")[:, :24], pixels("wide.png")[:, :24])


def test_a_transparent_mask_is_black_where_nothing_is_drawn(paint, photo):
    layer = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    layer.paste((255, 255, 255, 255), (0, 0, 16, 32))
    layer.save("layer.png")
    for name in ("mask", "layer"):
        paint("--seed", 7, "--steps", 2, "--from", photo, "--mask", f"{name}.png", "--out", f"by-{name}.png")
    assert np.array_equal(pixels("by-mask.png"), pixels("by-layer.png"))


def test_outpainting_adds_at_the_sides_that_are_named(paint, photo):
    paint("--seed", 7, "--steps", 2, "--from", photo, "--outpaint", "left=8,bottom=16", "--out", "cat.png")
    assert pixels("cat.png").shape == (48, 40, 3)
    assert np.array_equal(pixels("cat.png")[:32, 8:], pixels(photo))
    paint("--seed", 7, "--steps", 2, "--from", photo, "--outpaint", "8", "--out", "all.png")
    assert np.array_equal(pixels("all.png")[8:40, 8:40], pixels(photo))


def test_an_enlargement_paints_over_the_picture_that_is_painted_without_it(paint):
    """The same as by hand, from the file of the first pass."""
    common = ("--seed", 7, "--steps", 6)
    run = paint(*common, "--enlarge", 2, "--enlarge-strength", 0.5, "--out", "large.png")
    assert ": 64 x 64, seed 7" in run.out
    paint(*common, "--out", "small.png")
    paint(*common, "--from", "small.png", "--size", "64x64", "--strength", 0.5, "--out", "by-hand.png")
    assert np.array_equal(pixels("large.png"), pixels("by-hand.png"))


def test_a_picture_that_was_begun_from_a_file_finds_it_beside_itself(paint, diptych, tiny_brush, photo, folder):
    paint("--seed", 7, "--steps", 2, "--from", photo.name, "--out", "cat.png")
    (folder / "moved").mkdir()
    for name in ("photo.png", "cat.png"):
        (folder / name).rename(folder / "moved" / name)
    run = diptych("image", "--like", "moved/cat.png", "--model", tiny_brush, "--out", "again.png")
    assert run.status == 0, run.err
    assert np.array_equal(pixels("moved/cat.png"), pixels("again.png"))


@pytest.mark.parametrize(("name", "option"), [("photo.png", "--from"), ("mask.png", "--mask")])
def test_a_file_that_is_gone_or_changed_is_asked_for_in_one_line(paint, diptych, tiny_brush, photo, name, option):
    paint("--seed", 7, "--steps", 2, "--from", photo.name, "--mask", "mask.png", "--out", "cat.png")
    Image.new("RGB", (32, 32), "white").save(name)
    changed = diptych("image", "--like", "cat.png", "--model", tiny_brush)
    (photo.parent / name).unlink()
    gone = diptych("image", "--like", "cat.png", "--model", tiny_brush)
    for run, words in ((changed, "is not there as it was then"), (gone, "is not there")):
        assert (run.status, run.out, run.err.count("\n")) == (1, "", 1)
        assert f"'{name}', which {words}; name it with {option}" in run.err
    Image.new("RGB", (32, 32), "white").save("other.png")
    assert diptych("image", "--like", "cat.png", option, "other.png", "--model", tiny_brush).status == 0


def test_a_picture_of_python_does_not_name_what_it_began_from(paint, diptych, tiny_brush, photo):
    paint("--seed", 7, "--steps", 2, "--from", photo.name, "--out", "cat.png")
    save_png(Image.open("cat.png"), "bare.png", read_facts("cat.png") | {"picture": True})
    run = diptych("image", "--like", "bare.png", "--model", tiny_brush)
    assert (run.status, run.err.count("\n")) == (1, 1)
    assert "'bare.png' was painted with a picture that it does not name; name it with --from" in run.err


def test_a_weaker_model_guides_and_is_named_again(paint, diptych, tiny_brush, tiny_quill):
    assert "writes text; 'diptych text --model" in paint("--weaker", tiny_quill).err
    words = ("--model", tiny_brush, "--weaker", tiny_brush, "--out")
    paint("--seed", 7, "--steps", 2, "--weaker", tiny_brush, "--out", "cat.png")
    paint("--seed", 7, "--steps", 2, "--guidance", 1, "--out", "alone.png")
    assert np.array_equal(pixels("cat.png"), pixels("alone.png"))  # its own weaker self says the same
    lost = diptych("image", "--like", "cat.png", "--model", tiny_brush)
    assert "'tiny-brush', which is not bundled; name its folder with --weaker" in lost.err
    assert diptych("image", "--like", "cat.png", *words, "again.png").status == 0
    assert np.array_equal(pixels("cat.png"), pixels("again.png"))


def test_a_trace_says_what_its_picture_began_from(paint, diptych, photo):
    paint(
        "--seed", 7, "--steps", 4, "--from", photo.name, "--strength", 0.5, "--trace", "cat.trace", "--out", "cat.png"
    )
    settings = json.loads(diptych("trace", "show", "cat.trace", "--json").out.splitlines()[0])["settings"]
    assert settings["picture"] == read_facts("cat.png")["picture"]
    assert settings["strength"] == 0.5
    assert len(diptych("trace", "show", "cat.trace", "--json").out.splitlines()) == 1 + 2
    assert "picture photo.png, strength 0.5" in diptych("trace", "show", "cat.trace").out
    assert diptych("trace", "film", "cat.trace", "--pictures", 2).status == 0


def told(run):
    assert run.status == 0, run.err
    return " ".join(run.out.split())


def test_the_explanation_says_what_a_picture_begins_from_and_what_stays(paint, photo):
    common = ("--seed", 7, "--steps", 4, "--explain", "--from", "photo.png")
    story = told(paint(*common, "--strength", 0.5))
    assert "It starts from your picture 'photo.png' under static, drawn with seed 7" in story
    assert "when 2 of 4 steps are to come" in story
    assert "Only where the mask is white is painted" in told(paint(*common, "--mask", "mask.png"))
    assert "(pixels: 8 left)" in told(paint(*common, "--outpaint", "left=8"))


def test_the_explanation_says_what_lies_between_and_how_guidance_is_held(paint):
    common = ("--seed", 7, "--steps", 4, "--explain")
    story = told(paint(*common, "--to-prompt", "a dog", "--to-seed", 9, "--share", 0.25))
    assert "25 % of the way from your words 'a cat' to 'a dog'" in story
    assert "turned 25 % of the way to that of seed 9" in story
    assert "only while static is 0.5 to 4 times as strong" in told(paint(*common, "--guidance-interval", "0.5,4"))
    story = told(paint(*common, "--enlarge", 2))
    assert story.count("The picture is finished") == 2
    assert "The picture is enlarged 2 times" in story


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--size", "48"], "--size takes width and height in pixels, like 192x128, not '48'"),
        (["--size", "48x24", "--width", "48"], "choose --size or --width and --height"),
        (["--size", "50x24"], "width must be a multiple of 8 for 'tiny-brush': 48 or 56, not 50"),
        (["--width", "0"], "width must be a whole number from 1 to"),
        (["--strength", "0.5"], "--strength needs a picture to begin from: name it with --from"),
        (["--mask", "mask.png"], "--mask needs a picture that it lies over: name it with --from"),
        (["--outpaint", "8"], "--outpaint needs a picture to paint around: name it with --from"),
        (["--from", "photo.png", "--strength", "0"], "strength 0 paints nothing"),
        (["--from", "photo.png", "--strength", "2"], "strength must be a number from 0 to 1, not 2.0"),
        (["--from", "photo.png", "--outpaint", "left"], "--outpaint takes pixels, or sides with theirs"),
        (["--from", "photo.png", "--outpaint", "left=3"], "outpaint left must be a multiple of 8"),
        (["--from", "photo.png", "--outpaint", "lift=8"], "unknown side 'lift'; did you mean 'left'"),
        (["--from", "photo.png", "--outpaint", "8", "--size", "48x48"], "--outpaint says the size"),
        (["--from", "photo.png", "--mask", "long.png"], "the mask has 32 x 8 pixels, the picture 32 x 32"),
        (["--from", "photo.png", "--mask", "black.png"], "the mask is black all over"),
        (["--enlarge", "0.5"], "enlarge must be a number above 1 and up to 8, not 0.5"),
        (["--enlarge-strength", "0.5"], "--enlarge-strength is of --enlarge"),
        (["--guidance-interval", "3"], "--guidance-interval takes two noise levels as LOW,HIGH, not '3'"),
        (["--guidance-interval", "3,1"], "guidance_interval must be two noise levels"),
        (["--rescale", "2"], "guidance_rescale must be a finite number from 0 to 1, not 2.0"),
        (["--threshold", "1"], "guidance_threshold must be a number from 0 to below 1"),
        (["--momentum", "1"], "guidance_momentum must be a number between -1 and 1"),
        (["--weaker", "brush", "--negative", "a dog"], "choose one of --negative, --weaker"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_setting_is_one_line_and_nothing_is_written(paint, photo, folder, words, message):
    Image.new("L", (32, 8), 255).save("long.png")
    Image.new("L", (32, 32), 0).save("black.png")
    before = sorted(folder.iterdir())
    status, out, err = paint(*words)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"diptych: {message}")
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("option", ["--from", "--mask"])
def test_a_file_that_is_no_picture_is_named(paint, photo, folder, option):
    (folder / "meow.png").write_bytes(b"meow")
    words = ["--from", "photo.png", option, "meow.png"] if option == "--mask" else [option, "meow.png"]
    for name, why in (("meow.png", "is not a picture that can be read"), ("gone.png", "there is no picture at")):
        run = paint(*words[:-1], name)
        assert (run.status, run.out, run.err.count("\n")) == (1, "", 1)
        assert f"'{name}'" in run.err
        assert why in run.err


@pytest.mark.parametrize(
    "change",
    [
        {"turns": 5},
        {"turns": [[1, "a"]]},
        {"enlarge": 2},
        {"enlarge": {"factor": "2"}},
        {"frames": {"count": "9"}, "to_seed": 1},
        {"grid": {"steps": "12"}},
        {"grid": {"model": ["brush"]}},
        {"outpaint": {"left": "8"}, "picture": True},
        {"picture": "/etc/hostname"},
        {"weaker": ["quill"]},
        {"guidance_interval": "no"},
        {"height": "many"},
        {"noise": [1]},
    ],
    ids=str,
)
def test_metadata_of_strangers_is_refused_in_one_line_or_passed_over(paint, diptych, tiny_brush, change):
    paint("--seed", 7, "--steps", 1, "--out", "cat.png")
    save_png(Image.open("cat.png"), "odd.png", read_facts("cat.png") | change)
    run = diptych("image", "--like", "odd.png", "--model", tiny_brush, "--out", "again.png")
    if "noise" in change:
        assert run.status == 0
    else:
        assert (run.status in (1, 2), run.out, run.err.count("\n")) == (True, "", 1)
        assert "Error" not in run.err  # a message, not the name of an exception
