import math

import pytest
import torch

from diptych.text.decoder import Decoder, DecoderConfig
from diptych.text.objective import document_mask


def test_depth_8_is_twelve_million_parameters():
    """Counted by hand: embedding V w; per layer 4 w^2 of attention, 9 w^2 of feed-forward; norms are the rest."""
    decoder = Decoder(DecoderConfig.from_depth(8, vocab_size=4096, context=512))
    width = decoder.config.width
    norms = 8 * (2 * width + 2 * 64) + width
    assert decoder.num_parameters == 4096 * width + 8 * 13 * width**2 + norms
    assert decoder.num_parameters == pytest.approx(12e6, rel=0.02)


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
    places = torch.tensor([5, 0, 3])
    chosen = decoder(tokens, places=places)
    torch.testing.assert_close(chosen[:, 0], decoder(tokens)[torch.arange(3), places], rtol=0, atol=1e-5)


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
        ({"activation": "relu"}, "unknown activation 'relu'"),
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
