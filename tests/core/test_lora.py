import pytest
import torch
from torch import nn

from diptych.core.lora import Adapter, LoraSettings
from diptych.core.weights import digest
from diptych.text.decoder import Decoder, DecoderConfig

SIZES = {"width": 16, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "head_dim": 8, "hidden": 24, "context": 32}
TOKENS = torch.arange(20)[None]


@pytest.fixture
def network() -> Decoder:
    torch.manual_seed(1)
    network = Decoder(DecoderConfig(vocab_size=40, **SIZES)).eval()
    with torch.no_grad():
        network.embedding.weight.mul_(20)  # what a frozen head can say is not all alike
    return network


def learned(network: nn.Module, settings: LoraSettings, seed: int = 2) -> Adapter:
    """An adapter whose B is not zero any more."""
    adapter = Adapter.fresh(network, settings).eval()
    torch.manual_seed(seed)
    for layer in adapter.layers.values():
        nn.init.normal_(layer.b, std=0.3)
    return adapter


def test_the_sum_is_that_of_the_paper(network):
    """h = W x + alpha / r B A x, at one layer by hand."""
    adapter = learned(network, LoraSettings(rank=3, alpha=6.0, targets=("gate",)))
    layer, name = network.blocks[1].feed_forward.gate, "blocks.1.feed_forward.gate"
    x = torch.randn(5, 16)
    before = layer(x)
    adapter.attach(network)
    a, b = adapter.layers[name].a, adapter.layers[name].b
    torch.testing.assert_close(layer(x), before + 2.0 * (x @ a.T @ b.T))
    assert list(adapter.layers) == ["blocks.0.feed_forward.gate", name]


def test_what_has_learned_nothing_changes_nothing_and_what_is_taken_off_leaves_nothing(network):
    bare = network(TOKENS)
    fresh, adapter = Adapter.fresh(network, LoraSettings()), learned(network, LoraSettings())
    names = list(network.state_dict())
    fresh.attach(network)
    assert torch.equal(network(TOKENS), bare)
    fresh.detach()
    adapter.attach(network)
    assert not torch.allclose(network(TOKENS), bare)
    assert list(network.state_dict()) == names
    adapter.strength = 0.0
    assert torch.equal(network(TOKENS), bare)
    adapter.detach()
    assert torch.equal(network(TOKENS), bare)


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_merged_computes_what_unmerged_does(network, use_rslora, strength):
    adapter = learned(network, LoraSettings(rank=4, alpha=8.0, use_rslora=use_rslora))
    adapter.strength = strength
    adapter.attach(network)
    unmerged = network(TOKENS)
    adapter.detach()
    adapter.merge_into(network)
    torch.testing.assert_close(network(TOKENS), unmerged, rtol=0, atol=1e-4)


def test_every_matrix_of_the_blocks_is_adapted_unless_some_are_named(network):
    matrices = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    assert list(Adapter.fresh(network, LoraSettings()).layers) == matrices
    some = Adapter.fresh(network, LoraSettings(targets=("query", "value"))).layers
    assert {name.rpartition(".")[2] for name in some} == {"query", "value"}


def test_only_the_adapter_learns(network):
    adapter = Adapter.fresh(network, LoraSettings(rank=2, dropout=0.1))
    before = digest(network.state_dict())
    network.requires_grad_(False)
    adapter.attach(network)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=0.02)
    losses = []
    for _ in range(40):
        loss = network(TOKENS, targets=TOKENS.roll(-1)) / TOKENS.numel()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] / 2
    assert digest(network.state_dict()) == before
    assert not any(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "adapter.rank must be at least 1, not 0"),
        ({"alpha": 0.0}, "adapter.alpha must be a finite number > 0, not 0.0"),
        ({"dropout": 1.0}, "adapter.dropout must be a number >= 0 and < 1, not 1.0"),
        ({"targets": ("querry",)}, "unknown layer 'querry'; did you mean 'query'?"),
    ],
)
def test_what_cannot_be_is_refused_by_name(network, settings, message):
    with pytest.raises(ValueError) as error:
        Adapter.fresh(network, LoraSettings(**settings))
    assert str(error.value).startswith(message)


def test_an_adapter_for_another_network_is_refused(network):
    adapter = learned(network, LoraSettings())
    smaller = Decoder(DecoderConfig(vocab_size=40, **SIZES | {"num_layers": 1}))
    wider = Decoder(DecoderConfig(vocab_size=40, **SIZES | {"hidden": 32}))
    with pytest.raises(ValueError, match=r"does not fit the network, which has no 'blocks\.1\."):
        adapter.attach(smaller)
    with pytest.raises(ValueError, match=r"'blocks\.0\.feed_forward\.gate' is no matrix of plain numbers, \(24, 16\)"):
        adapter.merge_into(wider)
    adapter.attach(network)
    with pytest.raises(ValueError, match="attached already"):
        adapter.attach(network)


def test_beside_a_convolution_stands_one_to_as_many_channels_as_the_rank():
    """The sum of two convolutions is that of one with both weights, at any stride and padding."""
    torch.manual_seed(3)
    network = nn.Sequential(nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.Conv2d(8, 4, 1))
    adapter = learned(network, LoraSettings(rank=2, alpha=3.0, targets=("0", "1")))
    x = torch.randn(2, 6, 9, 7)
    bare = network(x)
    first = adapter.layers["0"]
    assert (tuple(first.a.shape), tuple(first.b.shape)) == ((2, 6, 3, 3), (8, 2))
    by_hand = network[0].weight + 1.5 * (first.b @ first.a.flatten(1)).view(8, 6, 3, 3)
    expected = nn.functional.conv2d(x, by_hand, network[0].bias, stride=2, padding=1)
    adapter.attach(network)
    torch.testing.assert_close(network[0](x), expected)
    worn = network(x)
    adapter.detach()
    assert torch.equal(network(x), bare)
    adapter.merge_into(network)
    torch.testing.assert_close(network(x), worn, rtol=0, atol=1e-5)
