"""The autoencoder's switches, and large pictures in tiles."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from diptych.image import tiles
from diptych.image.autoencoder import Autoencoder, AutoencoderConfig
from diptych.image.objective import autoencoder_loss

HOUSE = AutoencoderConfig(latent_channels=4, widths=(8, 16), decoder_blocks=1)
PUBLISHED = AutoencoderConfig(
    latent_channels=4,
    fold=1,
    widths=(16, 32, 32),
    decoder_blocks=2,
    norm_eps=1e-6,
    blocks_widen=True,
    pads_after=True,
    middle="attention",
    has_latent_convs=True,
)
CONFIGS = {"house": HOUSE, "published": PUBLISHED}


def made(config, spread=0.2):
    """An autoencoder whose blocks say something, and whose norms have something to do."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        autoencoder = Autoencoder(config).eval().requires_grad_(False)
        for name, parameter in autoencoder.named_parameters():
            if "conv2" in name or "norm" in name:
                parameter.add_(torch.randn(parameter.shape) * spread)
        autoencoder.shift.copy_(torch.tensor([0.1, -0.2, 0.3, 0.0]))
        autoencoder.scale.copy_(torch.tensor([2.0, 0.5, 1.0, 3.0]))
    return autoencoder


def picture(height, width, count=1):
    """Dark at the left and bright at the right, flat above and busy below: every tile has other statistics."""
    across, down = torch.linspace(-1, 1, width), torch.linspace(0, 1, height)[:, None]
    noise = torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(8)) * 2 - 1
    return across / 2 + noise * down / 2


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("height", "width", "tile"), [(48, 64, 16), (40, 72, 24), (16, 80, 32)])
def test_a_picture_in_tiles_is_the_whole_picture(name, height, width, tile):
    """Both ways, to rounding: no step at a tile's border, and no other colours in it."""
    autoencoder, pictures = made(CONFIGS[name]), picture(height, width, count=2)
    latents = autoencoder.encode(pictures)
    assert latents.std() > 0.1
    torch.testing.assert_close(tiles.encode(autoencoder, pictures, tile=tile), latents, rtol=0, atol=2e-5)
    whole = autoencoder.decode(latents)
    assert whole.std() > 0.1
    torch.testing.assert_close(tiles.decode(autoencoder, latents, tile=tile), whole, rtol=0, atol=2e-5)


def test_tiles_in_bfloat16_are_as_near_as_the_whole_is():
    """To what is computed in float32, where the pictures' own rounding is the measure."""
    exact, fast = made(PUBLISHED), made(PUBLISHED)
    fast.decoder.to(dtype=torch.bfloat16, memory_format=torch.channels_last)
    latents = exact.encode(picture(48, 64))
    wanted = exact.decode(latents)
    rounding = (fast.decode(latents) - wanted).square().mean().sqrt()
    assert (tiles.decode(fast, latents, tile=16) - wanted).square().mean().sqrt() < 1.5 * rounding


def test_tiles_that_took_their_own_statistics_would_show():
    """What the counting is for: tiles by themselves, with as much around as they look at, have a step at the border."""
    autoencoder = made(PUBLISHED)
    latents = autoencoder.encode(picture(96, 96))
    halves = [autoencoder.decode(latents[..., :18])[..., :48], autoencoder.decode(latents[..., 6:])[..., 24:]]
    apart, whole = torch.cat(halves, -1), autoencoder.decode(latents)
    tiled = tiles.decode(autoencoder, latents, tile=48)

    def step(decoded):
        return ((decoded - whole).diff(dim=-1)[..., 47]).abs().mean()

    assert step(apart) > 0.01
    assert step(tiled) < 1e-5


def test_a_picture_no_larger_than_a_tile_is_not_cut():
    autoencoder = made(PUBLISHED)
    latents = autoencoder.encode(picture(32, 48))
    assert torch.equal(tiles.decode(autoencoder, latents, tile=48), autoencoder.decode(latents))
    assert torch.equal(tiles.encode(autoencoder, picture(32, 48), tile=48), latents)


def test_cutting_begins_where_pictures_are_large(monkeypatch):
    """Up to LARGE pixels all at once, bit for bit as ever; one at a time past that; in tiles when one is too large."""
    autoencoder = made(HOUSE)
    latents = autoencoder.encode(picture(32, 48, count=3))
    whole = autoencoder.decode(latents)
    calls = []
    tiled = tiles._tiled
    monkeypatch.setattr(tiles, "_tiled", lambda layers, x, tile: calls.append(len(layers)) or tiled(layers, x, tile))
    for large, cuts in ((3 * 32 * 48, []), (32 * 48, [0, 0, 0]), (32 * 48 - 1, [1, 1, 1])):
        monkeypatch.setattr(tiles, "LARGE", large)
        monkeypatch.setattr(tiles, "TILE", 16)
        calls.clear()
        torch.testing.assert_close(tiles.decode(autoencoder, latents), whole, rtol=0, atol=2e-5)
        assert [min(count, 1) for count in calls] == cuts
        torch.testing.assert_close(tiles.encode(autoencoder, picture(32, 48, count=3)), latents, rtol=0, atol=2e-5)
    monkeypatch.undo()
    assert torch.equal(tiles.decode(autoencoder, latents), whole)


def peak(work, tmp_path):
    """Bytes of tensors that there were at once, as torch's allocator counts them."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        work()
    watched.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    changes = [event["args"]["Bytes"] for event in events if event.get("name") == "[memory]"]
    sums = torch.tensor(changes).cumsum(0)
    return int(sums.max())


def test_tiles_take_less_memory(tmp_path):
    """Less than half of the whole for a picture of 16 tiles' area, both ways."""
    autoencoder = made(PUBLISHED)
    pictures, latents = picture(128, 128), torch.randn(1, 4, 32, 32)
    with torch.no_grad():
        for whole, tiled in (
            (lambda: autoencoder.decode(latents), lambda: tiles.decode(autoencoder, latents, tile=32)),
            (lambda: autoencoder.encode(pictures), lambda: tiles.encode(autoencoder, pictures, tile=32)),
        ):
            assert peak(tiled, tmp_path) < peak(whole, tmp_path) / 2


def test_sides_that_are_no_multiples_are_refused():
    with pytest.raises(ValueError, match="sides that are multiples of 8, not 36 x 40"):
        tiles.encode(made(HOUSE), picture(40, 36), tile=16)


@pytest.mark.parametrize("name", CONFIGS)
def test_it_learns_with_any_switches(name):
    """The objective of the autoencoder task falls by half in a few steps on two pictures."""
    with torch.random.fork_rng():
        torch.manual_seed(9)
        autoencoder = Autoencoder(CONFIGS[name])
    pictures = F.interpolate(picture(8, 8, count=2), 16, mode="bilinear")
    side = 16 // autoencoder.config.downsampling
    noise = torch.randn(2, 4, side, side, generator=torch.Generator().manual_seed(10))
    optimizer = torch.optim.Adam(autoencoder.parameters(), 5e-3)
    losses = []
    for _ in range(20):
        loss, _ = autoencoder_loss(autoencoder, pictures, noise, edge_weight=1.0, kl_weight=1e-4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    assert all(parameter.grad is not None for parameter in autoencoder.parameters())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"widths": [9]}, "autoencoder widths must be multiples of 8, not [9]"),
        ({"groups": 5}, "autoencoder widths must be multiples of 5"),
        ({"middle": "atention"}, "unknown autoencoder middle 'atention'; did you mean 'attention'"),
        ({"fold": 0}, "at least 1"),
        ({"blocks_widen": 1}, "autoencoder blocks_widen must be true or false, not 1"),
        ({"width": [8]}, "unknown autoencoder setting 'width'; did you mean 'widths'"),
    ],
)
def test_a_setting_that_is_wrong_is_named(values, message):
    with pytest.raises(ValueError) as caught:
        AutoencoderConfig.from_dict(values)
    assert message in str(caught.value)
