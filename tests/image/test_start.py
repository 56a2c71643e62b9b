"""A picture to begin from: in what size it is taken, what a mask keeps, what strength leaves."""

import io
import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.image.enlarge import enlarge
from diptych.image.model import ImageModel
from diptych.image.outpaint import widened
from diptych.image.photo import open_picture, to_bytes, to_tensor
from diptych.image.record import ImageResult
from diptych.image.runner import ImageRequest
from diptych.image.start import STRENGTH, Start, fitted, fitting_size


def photo(width: int = 64, height: int = 64, seed: int = 0) -> Image.Image:
    """Coarse patches of colour: something for an autoencoder to find again."""
    patches = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(patches).resize((width, height), Image.Resampling.BICUBIC)


def half_mask(width: int = 64, height: int = 64) -> Image.Image:
    """White in the left half."""
    mask = Image.new("L", (width, height), 0)
    mask.paste(255, (0, 0, width // 2, height))
    return mask


def pixels(result: ImageResult, which: int = 0) -> np.ndarray:
    return np.asarray(result.images[which], dtype=np.int16)


def test_a_picture_keeps_its_size_in_whole_steps_and_is_scaled_only_where_it_is_far_from_the_models() -> None:
    area = 128 * 128
    assert fitting_size((128, 128), area, 16) == (128, 128)
    assert fitting_size((127, 97), area, 16) == (96, 128)
    for size in ((4000, 3000), (40, 30)):
        height, width = fitting_size(size, area, 16)
        assert (height % 16, width % 16) == (0, 0)
        assert abs(width / height - 4 / 3) < 0.15
        assert abs(height * width - area) < 0.2 * area
    assert fitting_size((5000, 10), area, 16)[0] == 16  # a strip is as high as the model can paint


def test_one_side_that_is_said_takes_the_other_from_the_pictures_shape() -> None:
    assert fitting_size((100, 50), 128 * 128, 16, width=192) == (96, 192)
    assert fitting_size((100, 50), 128 * 128, 16, height=64) == (64, 128)
    assert fitting_size((100, 50), 128 * 128, 16, height=64, width=64) == (64, 64)


def test_fitting_cuts_the_middle_out_and_leaves_a_picture_of_that_size_alone() -> None:
    wide = Image.new("RGB", (96, 32), "red")
    wide.paste("blue", (32, 0, 64, 32))
    assert {colour for _, colour in fitted(wide, 32, 32).getcolors()} == {(0, 0, 255)}
    assert fitted(wide, 96, 32).tobytes() == wide.tobytes()


def test_pixels_outside_of_the_mask_stay_bit_for_bit(tiny: ImageModel) -> None:
    """At any strength, with random samplers too, for each of several pictures, and through an edge inside a cell."""
    picture = photo()
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (5, 9, 30, 41))  # edges lie inside the latent's cells of 8 pixels
    kept = np.asarray(mask) == 0
    for settings in ({}, {"strength": 0.5}, {"sampler": "euler-ancestral", "count": 2}, {"guidance_scale": 1}):
        result = tiny.generate("a cat", steps=4, seed=1, picture=picture, mask=mask, **settings).result()
        for number in range(len(result.images)):
            painted = pixels(result, number)
            assert np.array_equal(painted[kept], np.asarray(picture)[kept])
            assert np.abs(painted[~kept] - np.asarray(picture)[~kept]).max() > 10


def test_what_lies_under_the_mask_is_not_begun_from_at_full_strength(tiny: ImageModel) -> None:
    """There is static alone, whatever the picture; at a lower strength it shines through."""
    picture, mask = photo(), half_mask()
    noise = next(iter(tiny.generate("a cat", steps=4, seed=1))).noisy
    whole = next(iter(tiny.generate("a cat", steps=4, seed=1, picture=picture, mask=mask)))
    assert torch.equal(whole.noisy[..., :4], noise[..., :4])
    assert not torch.allclose(whole.noisy[..., 4:], noise[..., 4:], atol=1e-3)
    part = next(iter(tiny.generate("a cat", steps=4, seed=1, picture=picture, mask=mask, strength=0.5)))
    clean = tiny.compress(to_tensor(picture)[None])
    assert torch.allclose(part.noisy, part.alpha * clean + part.sigma * noise / whole.sigma, atol=1e-4)


def test_kept_cells_follow_the_path_of_the_picture_itself(tiny: ImageModel) -> None:
    """At each step they are alpha x_0 + sigma noise exactly: what a network saw in training."""
    picture, mask = photo(), half_mask()
    steps = list(tiny.generate("a cat", steps=5, seed=3, sampler="ddim", picture=picture, mask=mask))
    clean = tiny.compress(to_tensor(picture)[None])[..., 4:]
    noise = steps[0].noise[..., 4:]
    for step in steps:
        assert torch.allclose(step.noisy[..., 4:], step.alpha * clean + step.sigma * noise, atol=1e-3)


def test_a_mask_of_grey_is_half_way(tiny: ImageModel) -> None:
    picture, grey = photo(), Image.new("L", (64, 64), 51)  # a fifth
    steps = list(tiny.generate("a cat", steps=1, seed=1, picture=picture, mask=grey))
    free = list(tiny.generate("a cat", steps=1, seed=1, noise=steps[0].noisy / steps[0].sigma))
    clean = tiny.compress(to_tensor(picture)[None])
    assert torch.allclose(steps[0].denoised, 0.2 * free[0].denoised + 0.8 * clean, atol=1e-2)


def test_full_strength_without_a_mask_leaves_nothing_of_the_picture(tiny: ImageModel) -> None:
    plain = tiny.generate("a cat", steps=3, seed=1).result()
    over = tiny.generate("a cat", steps=3, seed=1, picture=photo(), strength=1.0).result()
    assert torch.equal(plain.latents, over.latents)


def test_a_picture_begins_with_the_noise_of_the_steps_that_are_left(tiny: ImageModel) -> None:
    """The last `strength` of the steps are taken, at the same levels; the start is on the path."""
    whole = list(tiny.generate("a cat", steps=10, seed=1))
    part = list(tiny.generate("a cat", steps=10, seed=1, picture=photo(), strength=0.3))
    assert [step.sigma for step in part] == [step.sigma for step in whole[7:]]
    noise = whole[0].noisy / whole[0].sigma
    clean = tiny.compress(to_tensor(photo())[None])
    assert torch.allclose(part[0].noisy, part[0].alpha * clean + part[0].sigma * noise, atol=1e-5)


def test_the_weaker_the_nearer_to_the_picture(tiny: ImageModel) -> None:
    """In latents, since nothing of a random autoencoder's pictures is known."""
    clean = tiny.compress(to_tensor(photo())[None])
    distances = []
    for strength in (0.04, 0.3, 0.6, 0.9):
        latents = tiny.generate("a cat", steps=25, seed=1, picture=photo(), strength=strength).result().latents
        distances.append(float((latents - clean).norm() / clean.norm()))
    assert distances == sorted(distances)
    assert distances[0] < 0.2
    assert tiny.generate("a cat", picture=photo()).result().settings["strength"] == STRENGTH


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "I;16", "1"])
def test_pictures_of_any_kind_are_taken_as_a_person_sees_them(tiny: ImageModel, mode: str) -> None:
    """Grey, transparent (on white), paletted and of 16 bits."""
    grey = photo().convert("L")
    if mode == "I;16":
        given = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    elif mode == "RGBA":
        given = photo().convert("RGBA")
        given.paste((255, 0, 0, 0), (0, 0, 32, 64))  # invisible red
    else:
        given = grey.convert(mode)
    start = Start.of(given, None, None, None, tiny)
    assert start.pixels is not None
    seen = to_bytes(start.pixels[0])
    if mode == "RGBA":
        assert bool((seen[:, :, :32] == 255).all())
    elif mode in ("L", "LA", "I;16"):
        assert np.array_equal(seen.numpy(), np.broadcast_to(np.asarray(grey), (3, 64, 64)))
    assert np.array_equal(seen.numpy().transpose(1, 2, 0), np.asarray(fitted_as_file(given)))


def fitted_as_file(picture: Image.Image) -> Image.Image:
    """What is read back from a PNG of it: the command's way in is the same as Python's."""
    file = io.BytesIO()
    picture.save(file, format="PNG")
    file.seek(0)
    from diptych.image.photo import decode_picture

    return decode_picture(file)


def test_a_photo_is_turned_as_its_camera_says_and_its_mask_with_it(tiny: ImageModel, tmp_path) -> None:  # type: ignore[no-untyped-def]
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    photo(96, 64).save(tmp_path / "turned.jpg", exif=exif)
    start = Start.of(Image.open(tmp_path / "turned.jpg"), None, None, None, tiny)
    assert (start.width, start.height) == (64, 96)
    from_file = Start.of(open_picture(tmp_path / "turned.jpg"), None, None, None, tiny)
    assert start.pixels is not None
    assert from_file.pixels is not None
    assert torch.equal(start.pixels, from_file.pixels)
    result = tiny.generate("a cat", steps=1, seed=1, picture=Image.open(tmp_path / "turned.jpg"), strength=0.5).result()
    assert result.image.size == (64, 96)


def test_an_odd_size_is_painted_in_the_nearest_that_can_be(tiny: ImageModel) -> None:
    result = tiny.generate("a cat", steps=2, seed=1, picture=photo(83, 49), strength=0.5).result()
    assert result.image.size == (80, 48)
    assert (result.settings["width"], result.settings["height"]) == (80, 48)


def test_strokes_on_a_transparent_layer_are_a_mask(tiny: ImageModel) -> None:
    layer = Image.new("RGBA", (64, 64), (255, 255, 255, 0))
    layer.paste((255, 255, 255, 255), (0, 0, 32, 64))
    with_layer, with_grey = (Start.of(photo(), mask, None, None, tiny).mask for mask in (layer, half_mask()))
    assert with_layer is not None
    assert with_grey is not None
    assert torch.equal(with_layer, with_grey)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask": half_mask()}, "a mask needs a picture"),
        ({"strength": 0.5}, "strength and mask need a picture"),
        ({"picture": photo(), "strength": 0}, "strength 0 paints nothing"),
        ({"picture": photo(), "strength": 1.5}, "strength must be a number from 0 to 1"),
        ({"picture": photo(), "strength": float("nan")}, "strength must be a number from 0 to 1"),
        ({"picture": photo(), "mask": Image.new("L", (64, 64))}, "black all over"),
        ({"picture": photo(), "mask": half_mask(64, 32)}, "64 x 32 pixels, the picture 64 x 64"),
        ({"picture": photo(), "height": 50}, "height must be a multiple of 16 for 'tiny': 48 or 64, not 50"),
        ({"picture": photo(), "height": -16}, "height must be a whole number of pixels"),
        ({"width": 100}, "width must be a multiple of 16 for 'tiny': 96 or 112, not 100"),
        ({"width": 8}, "width must be a multiple of 16 for 'tiny': 16, not 8"),
        ({"width": 64.0}, "width must be a whole number from 1 to 8192"),
        ({"share": 0.5}, "share 0.5 of the way to where"),
        ({"to_prompt": " ", "share": 0.5}, "to_prompt is empty"),
        ({"to_seed": -1, "share": 0.5}, "seed must be a whole number"),
        ({"turns": [(1, 2.0)]}, "turns must be pairs of a seed and a share"),
        ({"turns": [(-1, 0.5)]}, "seed must be a whole number"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(tiny: ImageModel, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny.generate("a cat", **settings)  # type: ignore[arg-type]


def test_wrong_settings_are_refused_before_a_picture_is_encoded(tiny: ImageModel) -> None:
    seen: list[int] = []
    hook = tiny.autoencoder.encoder.register_forward_hook(lambda *_: seen.append(1))
    for settings in ({"steps": 0}, {"strength": 2}, {"height": 50}, {"sampler": "no"}, {"prompt": "a cat " * 30}):
        with pytest.raises(ValueError):
            tiny.generate(**{"prompt": "a cat", "picture": photo(), **settings})  # type: ignore[arg-type]
    hook.remove()
    assert not seen


def test_outpainting_keeps_the_picture_and_paints_around_it(tiny: ImageModel) -> None:
    picture = photo()
    wide, mask = widened(picture, {"left": 16, "bottom": 32}, area=64 * 64, step=16)
    assert wide.size == mask.size == (80, 96)
    result = tiny.generate("a cat", steps=3, seed=1, picture=wide, mask=mask, height=96, width=80).result()
    painted = pixels(result)
    assert np.array_equal(painted[:64, 16:], np.asarray(picture))
    inside = np.asarray(mask) == 0
    assert inside.sum() == 64 * 64
    assert np.abs(painted[~inside] - np.asarray(wide)[~inside]).mean() > 5  # not the mirror image that held the place


def test_outpainting_and_a_mask_paint_in_both_places() -> None:
    _, mask = widened(photo(), {"top": 16}, area=64 * 64, step=16, mask=half_mask())
    assert np.array_equal(np.asarray(mask)[16:], np.asarray(half_mask()))
    assert (np.asarray(mask)[:16] == 255).all()


@pytest.mark.parametrize(
    ("margins", "message"),
    [
        ({"left": 10}, "outpaint left must be a multiple of 16"),
        ({"lefft": 16}, "unknown side 'lefft'; did you mean 'left'"),
        ({"left": -16}, "outpaint left must be a multiple of 16"),
        ({"left": 0}, "outpaint adds nothing"),
    ],
)
def test_room_that_cannot_be_added_is_refused(margins: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        widened(photo(), margins, area=64 * 64, step=16)


def test_the_second_pass_is_painting_over_the_enlarged_picture(tiny: ImageModel) -> None:
    first = tiny.generate("a cat", steps=4, seed=1).result().image
    second = enlarge(tiny, first, 1.5, strength=0.5, prompt="a cat", steps=4, seed=1).result()
    by_hand = tiny.generate(
        "a cat", steps=4, seed=1, picture=first.resize((96, 96), Image.Resampling.LANCZOS), strength=0.5
    ).result()
    assert second.image.size == (96, 96)
    assert np.abs(pixels(second) - pixels(by_hand)).max() <= 1
    for factor in (1, 0.5, float("nan"), 9, "2"):
        with pytest.raises(ValueError, match="enlarge must be a number above 1"):
            enlarge(tiny, first, factor, prompt="a cat")  # type: ignore[arg-type]


def test_the_same_picture_alone_and_among_others_of_other_sizes_and_beginnings(tiny: ImageModel) -> None:
    """One runner, one call a step: sizes, masks, starts and arcs side by side change nothing past rounding."""
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., :32] = 1
    begun = to_tensor(photo())[None]
    requests = [
        ImageRequest("a cat", steps=4, seed=1),
        ImageRequest("a dog", steps=6, seed=2, height=32, width=96),
        ImageRequest("a cat at night", steps=4, seed=3, picture=begun, strength=0.5, count=2),
        ImageRequest("a dog", steps=4, seed=4, picture=begun, mask=mask, height=64, width=64),
        ImageRequest("a beach", steps=3, seed=5, height=96, width=32, to_prompt="a dog in a forest", share=0.4),
        ImageRequest("night", steps=5, seed=6, to_seed=9, share=0.5, turns=((7, 0.2),)),
    ]
    runner = tiny.runner()

    def together(wanted: list[ImageRequest]) -> list[ImageResult]:
        jobs = [runner.admit(one) for one in wanted]
        while not all(job.is_done for job in jobs):
            runner.advance([job for job in jobs if not job.is_done])
        return [runner.finish(job) for job in jobs]

    for alone, among in zip(itertools.chain(*(together([one]) for one in requests)), together(requests), strict=True):
        assert [image.size for image in alone.images] == [image.size for image in among.images]
        for number in range(len(alone.images)):
            assert np.abs(pixels(alone, number) - pixels(among, number)).max() <= 2


@pytest.mark.parametrize(("height", "width"), [(16, 16), (32, 112), (112, 32), (96, 96)])
def test_pictures_come_in_the_size_that_is_asked_for(tiny: ImageModel, height: int, width: int) -> None:
    result = tiny.generate("a cat", steps=2, seed=1, height=height, width=width).result()
    assert result.image.size == (width, height)
    assert result.trace.arrays["preview"].shape[-2:] == (height, width)
