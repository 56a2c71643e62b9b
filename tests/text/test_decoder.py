import json
import math

import pytest
import torch

from diptych.core.experts import Experts
from diptych.core.feedforward import FeedForward
from diptych.text.decoder import Decoder, DecoderConfig
from diptych.text.objective import document_mask


def test_depth_8_is_twelve_million_parameters():
    """Counted by hand: embedding V w; per layer 4 w^2 of attention, 9 w^2 of feed-forward; norms are the rest."""
    decoder = Decoder(DecoderConfig.from_depth(8, vocab_size=4096, context=512))
    width = decoder.config.width
    norms = 8 * (2 * width + 2 * 64) + width
    count = sum(parameter.numel() for parameter in decoder.parameters())
    assert count == 4096 * width + 8 * 13 * width**2 + norms
    assert count == pytest.approx(12e6, rel=0.02)


def test_a_token_does_not_see_what_comes_after_it(decoder, config):
    tokens = torch.randint(config.vocab_size, (1, 12))
    changed = tokens.clone()
    changed[0, 7] = (tokens[0, 7] + 1) % config.vocab_size
    before, after = decoder(tokens), decoder(changed)
    torch.testing.assert_close(before[:, :7], after[:, :7], rtol=0, atol=1e-5)
    assert not torch.allclose(before[:, 7:], after[:, 7:], atol=1e-2)


def test_a_document_is_read_the_same_alone_and_behind_another(decoder, config):
    first, second = torch.randint(config.vocab_size, (2, 1, 9))
    row = torch.cat((first, second), dim=1)
    segments = torch.tensor([[1] * 9 + [2] * 9])
    positions = torch.arange(9).repeat(2)[None]
    packed = decoder(row, positions=positions, mask=document_mask(segments))
    torch.testing.assert_close(packed[:, 9:], decoder(second), rtol=0, atol=1e-4)


def test_only_wanted_places_give_the_same_logits(decoder, config):
    tokens = torch.randint(config.vocab_size, (3, 6))
    places = torch.tensor([[5, 4], [0, 0], [2, 3]])
    chosen = decoder(tokens, places=places)
    torch.testing.assert_close(chosen, decoder(tokens)[torch.arange(3)[:, None], places], rtol=0, atol=1e-5)


def test_the_first_loss_is_that_of_a_guess():
    """At the start all tokens are nearly equally likely: the loss is log V."""
    torch.manual_seed(0)
    decoder = Decoder(DecoderConfig.from_depth(2, vocab_size=512, context=32))
    tokens = torch.randint(512, (4, 33))
    loss = torch.nn.functional.cross_entropy(decoder(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    assert float(loss.detach()) == pytest.approx(math.log(512), rel=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widht": 64}, "unknown decoder setting 'widht'; did you mean 'width'"),
        ({"num_heads": 3}, r"num_heads \(3\) must be a multiple of num_kv_heads \(2\)"),
        ({"head_dim": 7}, "head_dim must be even, not 7"),
        ({"num_layers": 0}, "num_layers must be a whole number >= 1, not 0"),
        ({"width": 12.5}, "width must be a whole number >= 1, not 12.5"),
        ({"activation": "swish"}, "unknown activation 'swish'"),
        ({"position": "rotory"}, "unknown position 'rotory'; did you mean 'rotary'"),
        ({"windows": [4]}, r"windows must be 2 whole numbers >= 0, one for each layer .* not \[4\]"),
        ({"windows": 4}, "windows must be a list of whole numbers, not 4"),
        ({"logit_softcap": -1.0}, "logit_softcap must be a finite number >= 0"),
        ({"experts": 4}, "experts must be a table of settings, not 4"),
        ({"experts": {"num_experts": 4, "top_k": 5, "hidden": 8}}, r"experts.top_k must be at most num_experts \(4\)"),
        (
            {"experts": {"num_experts": 4, "top_k": 2, "hidden": 8, "layers": [0, 2]}},
            r"experts.layers must be below num_layers \(2\), not \[0, 2\]",
        ),
        ({"dropout": 1.0}, "dropout must be a number >= 0 and < 1, not 1.0"),
        ({"norm_eps": float("nan")}, "norm_eps must be a finite number > 0, not nan"),
    ],
)
def test_impossible_settings_are_named(config, change, message):
    with pytest.raises(ValueError, match=message):
        DecoderConfig.from_dict(config.to_dict() | change)


def test_missing_settings_are_named(config):
    entries = config.to_dict()
    del entries["hidden"]
    with pytest.raises(ValueError, match="decoder settings lack hidden"):
        DecoderConfig.from_dict(entries)


def test_dropout_acts_only_while_training(config):
    torch.manual_seed(1)
    decoder = Decoder(DecoderConfig.from_dict(config.to_dict() | {"dropout": 0.5}))
    tokens = torch.randint(config.vocab_size, (1, 8))
    assert not torch.equal(decoder(tokens), decoder(tokens))
    decoder.eval()
    assert torch.equal(decoder(tokens), decoder(tokens))


def test_windows_bound_how_far_a_token_is_seen(config):
    """Through two layers of windows 3 and 4, a token reaches 2 + 3 places further and not one more."""
    torch.manual_seed(2)
    decoder = Decoder(DecoderConfig.from_dict(config.to_dict() | {"windows": [3, 4]})).eval()
    tokens = torch.randint(config.vocab_size, (1, 20))
    changed = tokens.clone()
    changed[0, 6] = (tokens[0, 6] + 1) % config.vocab_size
    differs = (decoder(tokens) - decoder(changed)).abs().amax(-1)[0] > 0
    assert differs.nonzero()[:, 0].tolist() == list(range(6, 6 + 2 + 3 + 1))
    segments = torch.ones(1, 20, dtype=torch.int64)
    torch.testing.assert_close(decoder(tokens, mask=document_mask(segments)), decoder(tokens))


def test_learned_positions_tell_places_apart_and_none_does_not(config):
    """The same token at every place: without positions every place predicts the same."""
    torch.manual_seed(2)
    tokens = torch.full((1, 5), 7)
    for position, is_told in (("learned", True), ("rotary", False), ("none", False)):
        decoder = Decoder(DecoderConfig.from_dict(config.to_dict() | {"position": position}))
        logits = decoder(tokens)
        assert torch.allclose(logits[0, 0], logits[0, 4], atol=1e-5) != is_told


def test_capped_logits_are_the_formula(config):
    torch.manual_seed(2)
    tokens = torch.randint(config.vocab_size, (2, 5))
    plain = Decoder(config)
    capped = Decoder(DecoderConfig.from_dict(config.to_dict() | {"logit_softcap": 0.1}))
    capped.load_state_dict(plain.state_dict())
    torch.testing.assert_close(capped(tokens), 0.1 * torch.tanh(plain(tokens) / 0.1))


def test_biases_are_where_their_switches_say_and_begin_at_zero(config):
    switches = {"has_qkv_bias": True, "has_output_bias": True, "has_feed_forward_bias": True}
    decoder = Decoder(DecoderConfig.from_dict(config.to_dict() | switches))
    biases = {name: value for name, value in decoder.named_parameters() if name.endswith(".bias")}
    assert len(biases) == config.num_layers * (3 + 1 + 3)
    assert all(not value.any() for value in biases.values())


EXPERTS = {"num_experts": 4, "top_k": 2, "hidden": 24, "num_shared": 1, "balance": "bias", "layers": [1]}


def test_experts_take_the_place_of_the_feed_forward_where_they_are_asked_for(config):
    decoder = Decoder(DecoderConfig.from_dict(config.to_dict() | {"experts": EXPERTS}))
    assert isinstance(decoder.blocks[0].feed_forward, FeedForward)
    assert isinstance(decoder.blocks[1].feed_forward, Experts)
    shapes = {name: tuple(value.shape) for name, value in decoder.blocks[1].feed_forward.state_dict().items()}
    width = config.width
    assert shapes == {
        "router": (4, width),
        "gate": (4, 24, width),
        "up": (4, 24, width),
        "down": (4, width, 24),
        "bias": (4,),
        "shared.gate.weight": (24, width),
        "shared.up.weight": (24, width),
        "shared.down.weight": (width, 24),
    }


def test_a_decoder_with_experts_begins_as_one_without(config):
    """What ends a residual branch is smaller, and the first loss is that of a guess."""
    torch.manual_seed(0)
    decoder = Decoder(DecoderConfig.from_dict(config.to_dict() | {"experts": EXPERTS | {"num_experts": 64}}))
    made = decoder.blocks[1].feed_forward
    branch_end = 0.02 / math.sqrt(2 * config.num_layers)
    assert float(made.up.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert float(made.down.detach().std()) == pytest.approx(branch_end, rel=0.05)
    assert float(made.shared.down.weight.detach().std()) == pytest.approx(branch_end, rel=0.1)
    assert float(made.router.detach().std()) == pytest.approx(0.02, rel=0.1)


def test_settings_come_back_from_json(config):
    with_experts = DecoderConfig.from_dict(config.to_dict() | {"experts": EXPERTS})
    assert DecoderConfig.from_dict(json.loads(json.dumps(with_experts.to_dict()))) == with_experts
