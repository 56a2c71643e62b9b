"""Networks by name: what all have in common, and what patches, places and clocks are, against closed forms."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from diptych.core.positions import apply_rotary
from diptych.image.clock import CLOCKS, features
from diptych.image.denoiser import told_time
from diptych.image.networks import NETWORKS, kind_of, make_network
from diptych.image.patches import cropped, from_patches, place_angles, sincos_table, to_patches

TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "unet": ("unet", {"widths": [32, 64], "head_dim": 16}),
    "unet, framed": (
        "unet",
        {"widths": [32, 64], "heads": [2, 4], "depths": [1, 2], "is_framed": True, "norm": "layer"},
    ),
    "unet, no prompt": ("unet", {"widths": [32], "has_attention": [True], "head_dim": 16, "context_width": 0}),
    "dit, cross": ("dit", {"width": 32, "num_layers": 2, "num_heads": 2}),
    "dit, tokens": ("dit", {"width": 32, "num_layers": 2, "num_heads": 2, "prompt": "tokens", "positions": "table"}),
    "dit, pooled": ("dit", {"width": 32, "num_layers": 1, "num_heads": 2, "pooled_width": 12}),
    "mmdit, table": ("mmdit", {"num_heads": 2, "head_dim": 16, "joint_layers": 2, "dual_layers": [0]}),
    "mmdit, rotary": (
        "mmdit",
        {"num_heads": 2, "head_dim": 16, "joint_layers": 1, "single_layers": 1, "ends_words": False, "axes": [8, 8]}
        | {"positions": "rotary", "has_guidance": True, "pooled_width": 12},
    ),
}


def tiny(name: str) -> nn.Module:
    """With weights that begin at zero away from it, so that everything that is told comes out."""
    torch.manual_seed(0)
    kind, sizes = TINY[name]
    network = make_network(kind, {"channels": 4, "context_width": 16} | sizes)
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return network.eval()


def told(size: tuple[int, int] = (8, 12)) -> dict[str, Any]:
    random = torch.Generator().manual_seed(1)
    return {
        "x": torch.randn(2, 4, *size, generator=random),
        "time": torch.tensor([0.5, -2.0]),
        "context": torch.randn(2, 5, 16, generator=random),
        "mask": torch.arange(5) < torch.tensor([[5], [3]]),
        "pooled": torch.randn(2, 12, generator=random),
        "numbers": torch.tensor([[3.5], [1.0]]),
    }


@pytest.mark.parametrize("name", TINY)
def test_a_network_is_made_again_from_its_settings(name: str) -> None:
    network = tiny(name)
    kind = kind_of(network)
    again = make_network(kind, network.config.to_dict())  # type: ignore[union-attr, operator]
    again.load_state_dict(network.state_dict())
    with torch.no_grad():
        assert torch.equal(network(**told()), again.eval()(**told()))
    assert network.clock in CLOCKS
    assert NETWORKS[kind][1] is type(network)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("part", ["x", "time", "context", "pooled", "numbers"])
def test_everything_that_is_told_reaches_the_prediction(name: str, part: str) -> None:
    network, inputs = tiny(name), told()
    changed = inputs | {part: inputs[part] + 1}
    with torch.no_grad():
        is_seen = not torch.allclose(network(**inputs), network(**changed), atol=1e-5)
    settings = network.config.to_dict()  # type: ignore[union-attr, operator]
    wants = {
        "x": True,
        "time": True,
        "context": settings["context_width"] > 0,
        "pooled": bool(settings.get("pooled_width")),
        "numbers": bool(settings.get("has_guidance")),
    }
    assert is_seen == wants[part]


@pytest.mark.parametrize("name", TINY)
def test_words_that_are_hidden_and_rows_beside_change_nothing(name: str) -> None:
    network, inputs = tiny(name), told()
    with torch.no_grad():
        whole = network(**inputs)
        other = inputs["context"].clone()
        other[~inputs["mask"]] = 9.0
        assert torch.allclose(network(**inputs | {"context": other}), whole, atol=1e-5)
        alone = network(**{key: value[1:] for key, value in inputs.items()})
    assert torch.allclose(alone, whole[1:], atol=1e-5)


@pytest.mark.parametrize("name", ["dit, cross", "dit, tokens", "mmdit, table", "mmdit, rotary"])
def test_a_new_transformer_predicts_nothing_and_learns_in_every_part(name: str) -> None:
    """Peebles & Xie 2023, sec. 3.2: every block begins as the identity."""
    torch.manual_seed(0)
    kind, sizes = TINY[name]
    network = make_network(kind, {"channels": 4, "context_width": 16} | sizes)
    assert not network(**told()).any()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    target = torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(2))
    losses = []
    for _ in range(12):
        loss = (network(**told()) - target).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_the_denoisers_of_others_need_what_they_were_trained_with() -> None:
    network, inputs = tiny("mmdit, rotary"), told()
    with pytest.raises(ValueError, match="needs the guidance scale"):
        network(**inputs | {"numbers": None})
    with pytest.raises(ValueError, match="needs the pooled prompt"):
        network(**inputs | {"pooled": None})
    with pytest.raises(ValueError, match="a picture of 7 x 8 places cannot be cut into patches of 2 x 2"):
        network(**inputs | told((8, 7)))
    with pytest.raises(ValueError, match="a picture of 4 x 70 patches is larger than this network's 64 x 64"):
        tiny("mmdit, table")(**told((140, 8)))


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("unet", {"heads": [3, 4]}, "U-Net heads must divide the widths"),
        ("unet", {"depths": [2, 2]}, "U-Net depths above 1 need is_framed"),
        ("unet", {"clock": "cuckoo"}, "unknown U-Net clock 'cuckoo'"),
        ("unet", {"blocks": "2"}, "U-Net blocks must be a whole number, not '2'"),
        ("dit, cross", {"prompt": "toekns"}, "unknown DiT prompt 'toekns'; did you mean 'tokens'"),
        ("dit, cross", {"width": 0}, "DiT width must be at least 1, not 0"),
        ("mmdit, table", {"dual_layers": [2]}, "MMDiT dual_layers must be below joint_layers"),
        ("mmdit, rotary", {"ends_words": True}, "MMDiT ends_words must be false where single blocks follow"),
        ("mmdit, rotary", {"axes": [6, 8]}, "MMDiT axes must be two or more even numbers that add up to head_dim"),
    ],
)
def test_settings_that_cannot_be_are_refused(name: str, change: dict[str, Any], said: str) -> None:
    kind, sizes = TINY[name]
    with pytest.raises(ValueError, match=said):
        make_network(kind, sizes | change)
    with pytest.raises(ValueError, match="unknown network 'unett'; did you mean 'unet'"):
        make_network("unett", {})


@pytest.mark.parametrize("has_channels_last", [False, True])
def test_patches_come_back_as_the_picture(has_channels_last: bool) -> None:
    x = torch.randn(2, 3, 6, 9)
    rows = to_patches(x, 3)
    assert torch.equal(rows[1, 4], x[1, :, 3:6, 3:6].flatten()), "row after row, channels first"
    if has_channels_last:
        rows = rows.unflatten(-1, (3, 3, 3)).movedim(2, -1).flatten(2)
    assert torch.equal(from_patches(rows, 6, 9, 3, has_channels_last=has_channels_last), x)


def test_a_table_of_places_is_cut_from_its_middle() -> None:
    table = sincos_table(8, 16, spacing=0.5)
    turns = 10000.0 ** -(torch.arange(4) / 4)
    assert torch.allclose(table[3, 5, :4], (2.5 * turns).sin(), atol=1e-6), "first the column"
    assert torch.allclose(table[3, 5, 12:], (1.5 * turns).cos(), atol=1e-6), "last the row"
    assert torch.equal(cropped(table, 2, 4), table[3:5, 2:6].flatten(0, 1))


@pytest.mark.parametrize("pairs_neighbours", [False, True])
def test_turned_places_know_their_distance_alone(pairs_neighbours: bool) -> None:
    """Su et al. 2021, sec. 3.2.2, on two axes: a query's product with a key depends on the rows and columns between."""
    q, k = torch.randn(2, 1, 1, 1, 16)
    cos, sin = place_angles(5, 6, (4, 6, 6), words=1, pairs_neighbours=pairs_neighbours)
    queries, keys = (apply_rotary(one.expand(1, 1, 31, 16).clone(), cos, sin, pairs_neighbours)[0, 0] for one in (q, k))
    assert torch.equal(queries[0], q.flatten()), "a word does not turn"
    products = (queries[1:] @ keys[1:].T).view(5, 6, 5, 6)
    assert torch.allclose(products[2, 4, 0, 1], products[4, 5, 2, 2], atol=1e-5)
    assert not torch.allclose(products[2, 4, 0, 1], products[2, 4, 0, 2], atol=1e-4)
    if pairs_neighbours:
        angle = 3 * 10000 ** (-2 / 6)  # column 3 turns the second pair of the last axis
        turned = math.cos(angle) * q.flatten()[12] - math.sin(angle) * q.flatten()[13]
        assert queries[1 + 3, 12].item() == pytest.approx(turned.item(), abs=1e-5)


def test_clocks_tell_the_same_level_alike() -> None:
    """EDM's clock is log(sigma / alpha) / 4, log-SNR's -2 log(sigma / alpha): the waves differ in their sign alone."""
    log_snr = torch.tensor([3.0, -4.0])
    edm = told_time("edm", log_snr, torch.zeros(2), torch.zeros(2), 1000)
    by_snr, by_edm = features(log_snr, 32, "log-snr"), features(edm, 32, "edm")
    assert torch.allclose(by_snr[:, 16:], by_edm[:, 16:], atol=1e-4)
    assert torch.allclose(by_snr[:, :16], -by_edm[:, :16], atol=1e-4)
    flipped = features(torch.tensor([7.0]), 8, has_cosines_first=True)
    assert torch.allclose(flipped[0, :4], torch.cos(7 * 10000.0 ** -(torch.arange(4) / 4)), atol=1e-6)
