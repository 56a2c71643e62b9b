"""Attention of many queries over a long text in blocks, against torch's own in float32."""

import pytest
import torch
import torch.nn.functional as F

from diptych.core import long_rows
from diptych.core.attention import within_window


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks that the masks below hide, show whole and cut."""
    monkeypatch.setattr(long_rows, "ROWS", 24)
    monkeypatch.setattr(long_rows, "KEYS", 32)


def drawn(*shape, seed):
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("window", [10**6, 40])
@pytest.mark.parametrize("num_kv_heads", [4, 2, 1])
def test_blocks_give_what_one_softmax_gives(small_blocks, window, num_kv_heads):
    """In float32 to rounding: rows of two texts at different places, every query of the last block cut."""
    q = drawn(2, 4, 70, 16, seed=1)
    k, v = drawn(2, num_kv_heads, 200, 16, seed=2), drawn(2, num_kv_heads, 200, 16, seed=3)
    places = torch.stack((torch.arange(130, 200), torch.arange(50, 120)))
    mask = within_window(torch.arange(200) <= places[:, None, :, None], places, 200, window)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    torch.testing.assert_close(long_rows.attend_long(q, k, v, mask), expected, rtol=1e-4, atol=1e-5)
    one = long_rows.attend_long(q, k, v, mask[:1])
    torch.testing.assert_close(one[0], expected[0], rtol=1e-4, atol=1e-5)


def test_in_bfloat16_the_error_is_that_of_rounded_scores(small_blocks):
    q, k, v = (drawn(1, 2, count, 32, seed=count).bfloat16() for count in (100, 300, 301))
    v = v[:, :, :300]
    mask = torch.arange(300) <= torch.arange(200, 300)[:, None]
    exact = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask)
    ours = long_rows.attend_long(q, k, v, mask[None, None]).float()
    assert (ours - exact).square().mean().sqrt() < 0.01 * exact.square().mean().sqrt()


def test_it_is_for_long_texts_that_are_read_and_not_learned_from(monkeypatch):
    monkeypatch.setattr("diptych.core.kernels.CPU_MULTIPLIES_BFLOAT16", True)
    k, mask = torch.zeros(1, 1, long_rows.LONG, 8).bfloat16(), torch.ones(1, 1, 256, long_rows.LONG, dtype=torch.bool)
    q = k[:, :, :256]
    assert not long_rows.suits(q, k, k, mask)
    with torch.no_grad():
        assert long_rows.suits(q, k, k, mask)
        assert not long_rows.suits(q, k[:, :, :-1], k[:, :, :-1], mask)
        assert not long_rows.suits(q[:, :, :16], k, k, mask)
        assert not long_rows.suits(q.float(), k.float(), k.float(), mask)
