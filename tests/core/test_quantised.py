"""Against products of plain float matrices, and against the bound that rounding sets."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from diptych.core import quantised
from diptych.core.quantised import GROUP, MANY, Int4Linear, Int8Linear, QuantisedEmbedding, check_bits, quantise


def draws(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("count", [1, 3, 16, 17, 40])
@pytest.mark.parametrize(("rows", "width"), [(32, 64), (7, 48), (5, 31), (1, 96)])
def test_a_product_in_8_bits_is_that_of_the_matrix_that_its_numbers_stand_for(rows, width, count, dtype):
    """Few rows and many go different ways, and so do matrices that the packed kernel cannot take."""
    weight, bias, x = (
        draws(rows, width, seed=1),
        draws(rows, seed=2).to(dtype),
        draws(2, count, width, seed=3).to(dtype),
    )
    layer = Int8Linear(weight, bias, dtype)
    stands_for = layer.weight.float() * layer.scale.float()[:, None]
    expected = F.linear(x.float(), stands_for, bias.float())
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(layer(x).float(), expected, rtol=tolerance, atol=tolerance * width**0.5)
    step = weight.abs().amax(dim=1, keepdim=True) / 127
    assert (stands_for - weight).abs().le(0.51 * step).all()  # half a step, and the scale's own rounding
    ends = layer.rows(torch.tensor([[0, rows - 1]]))[0].float()
    torch.testing.assert_close(ends, stands_for[[0, rows - 1]], rtol=2**-8, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("rows", [16, 48, 5])
def test_a_product_in_4_bits_is_that_of_a_matrix_within_half_a_step(rows, dtype):
    """Rows in sixteens are packed for the kernel, others are not."""
    width = 3 * GROUP
    weight, bias, x = draws(rows, width, seed=1), draws(rows, seed=2).to(dtype), draws(2, 3, width, seed=3).to(dtype)
    layer = Int4Linear(weight, bias, dtype)
    unit = torch.eye(width, dtype=dtype)
    stands_for = (layer(unit).float() - bias.float()).T
    groups = weight.unflatten(1, (-1, GROUP))
    step = ((groups.amax(2) - groups.amin(2)) / 15).repeat_interleave(GROUP, dim=1)
    coarse = 2**-7 if dtype == torch.bfloat16 else 1e-5
    assert (stands_for - weight).abs().le(0.5 * step + 20 * coarse * step + coarse * (1 + weight.abs())).all()
    expected = F.linear(x.float(), stands_for, bias.float())
    tolerance = 4e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(layer(x).float(), expected, rtol=tolerance, atol=tolerance * width**0.5)


def test_packed_and_plain_numbers_of_4_bits_are_the_same():
    weight, x = draws(16, 64, seed=1), draws(2, 64, seed=3)
    packed, plain = Int4Linear(weight, None, torch.float32), Int4Linear(weight[:15], None, torch.float32)
    assert (packed.packs, plain.packs) == (True, False)
    torch.testing.assert_close(packed(x)[:, :15], plain(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("count", [16, 64, 80, 176])
def test_many_rows_see_the_same_matrix_in_4_bits(count, dtype, monkeypatch):
    """It is unpacked for them, some of its rows at a time, where torch packs as is known."""
    monkeypatch.setattr(quantised, "SOME", 2 * 64 * 96)
    layer = Int4Linear(draws(count, 96, seed=1), draws(count, seed=2).to(dtype), dtype)
    x = draws(MANY, 96, seed=3).to(dtype)
    few = torch.cat([layer(part) for part in x.split(16)])
    difference = (layer(x).float() - few.float()).norm() / few.float().norm()
    assert difference < (2**-7 if dtype == torch.bfloat16 else 1e-6)
    monkeypatch.setattr(torch, "_weight_int4pack_mm_for_cpu", None)
    layer(x)
    monkeypatch.undo()
    layer.unpacks = False
    torch.testing.assert_close(layer(x), few)


@pytest.mark.parametrize("kind", [Int8Linear, Int4Linear])
def test_rows_of_nothing_stay_nothing(kind):
    layer = kind(torch.zeros(16, 32), None, torch.float32)
    assert torch.equal(layer(draws(2, 32, seed=1)), torch.zeros(2, 16))


@pytest.mark.parametrize(("bits", "kinds"), [(8, [Int8Linear, Int8Linear]), (4, [Int4Linear, Int8Linear])])
def test_every_linear_layer_is_replaced_and_rows_that_do_not_divide_stay_in_8_bits(bits, kinds):
    network = nn.Sequential(nn.Linear(64, 40), nn.ModuleDict({"inner": nn.Linear(40, 3)}), nn.LayerNorm(3))
    quantise(network, bits, torch.float32, "cpu")
    assert [type(network[0]), type(network[1]["inner"]), type(network[2])] == [*kinds, nn.LayerNorm]
    assert [name for name, _ in network.named_parameters()] == ["2.weight", "2.bias"]


def test_an_embedding_reads_rows_of_the_matrix_that_predicts():
    matrix = Int8Linear(draws(10, 32, seed=1), None, torch.float32)
    tokens = torch.tensor([[3, 0], [9, 9]])
    expected = (matrix.weight.float() * matrix.scale[:, None])[tokens]
    assert torch.equal(QuantisedEmbedding(matrix)(tokens), expected)


def test_quantised_weights_are_not_written():
    with pytest.raises(ValueError, match="open the model without bits"):
        Int8Linear(torch.ones(2, 16), None, torch.float32).state_dict()


@pytest.mark.parametrize("bits", [0, 3, 16, True, "int8"])
def test_other_bits_are_refused(bits):
    with pytest.raises(ValueError, match="bits must be 8 or 4, not"):
        check_bits(bits)
