from dataclasses import replace

import pytest
import torch
from torch import nn

from diptych.core import weights
from diptych.core.quantised import Quantised
from diptych.text.assembly import assemble
from diptych.text.decoder import Decoder
from diptych.text.model import TextModel

CPU = torch.device("cpu")


def test_what_a_file_holds_becomes_the_weights_without_a_copy_and_the_file_stays_as_it_is(model, tmp_path):
    model.save(tmp_path / "tiny", dtype=torch.bfloat16)
    tensors = weights.read_tensors(tmp_path / "tiny")
    there = {name: tensor.data_ptr() for name, tensor in tensors.items()}
    decoder = assemble(model.config, tensors.items(), "tiny", device=CPU, dtype=torch.bfloat16)
    assert {name: tensor.data_ptr() for name, tensor in decoder.state_dict().items()} == there
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.zero_()
    assert all(tensor.any() for tensor in weights.read_tensors(tmp_path / "tiny").values())


def test_another_dtype_is_converted_and_nothing_stays_without_weights(model):
    decoder = assemble(model.config, model.decoder.state_dict().items(), "tiny", device=CPU, dtype=torch.float64)
    for name, tensor in decoder.state_dict().items():
        assert torch.equal(tensor, model.decoder.state_dict()[name].double())


@pytest.mark.parametrize(("name", "change"), [("it lacks 'norm.weight'", None), ("'norm.weight' is", torch.ones(3))])
def test_tensors_that_do_not_fit_are_named(model, name, change):
    tensors = model.decoder.state_dict() | ({} if change is None else {"norm.weight": change})
    if change is None:
        del tensors["norm.weight"]
    with pytest.raises(ValueError, match=name):
        assemble(model.config, tensors.items(), "tiny", device=CPU, dtype=torch.float32)


@torch.no_grad()
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("ties_embeddings", [True, False])
def test_a_quantised_decoder_is_a_decoder_of_the_matrices_that_its_numbers_stand_for(config, bits, ties_embeddings):
    """Against a plain one that is given, as its weights, what each quantised layer makes of the unit vectors."""
    torch.manual_seed(4)
    config = replace(config, has_qkv_bias=True, ties_embeddings=ties_embeddings)
    plain = Decoder(config).eval()
    for parameter in plain.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    small = assemble(config, plain.state_dict().items(), "tiny", device=CPU, dtype=torch.float32, bits=bits)
    for name, module in plain.named_modules():
        if isinstance(module, nn.Linear):
            layer = small.get_submodule(name)
            assert isinstance(layer, Quantised)
            unit = torch.eye(module.in_features)
            module.weight.copy_((layer(unit) - layer(torch.zeros_like(unit))).T)
    plain.embedding.weight.copy_(small.embedding(torch.arange(config.vocab_size)))
    tokens = torch.randint(config.vocab_size, (2, 20))
    torch.testing.assert_close(small(tokens), plain(tokens), rtol=0, atol=1e-4)


def test_a_model_in_8_bits_writes_and_is_not_saved(model, tmp_path):
    model.save(tmp_path / "tiny")
    small = TextModel.load(tmp_path / "tiny", device="cpu", dtype="bfloat16", bits=8)
    assert len(small.generate("Once", max_tokens=5, seed=1).result().tokens) <= 5
    with pytest.raises(ValueError, match="open the model without bits"):
        small.save(tmp_path / "small")
    assert not (tmp_path / "small").exists()
    with pytest.raises(ValueError, match="bits must be 8 or 4, not 2"):
        TextModel.load(tmp_path / "tiny", bits=2)
