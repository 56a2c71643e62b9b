"""Attention in blocks against attention in one piece, in float32."""

import pytest
import torch
import torch.nn.functional as F

from diptych.core import many_queries
from diptych.core.attention import attend
from diptych.core.many_queries import MANY, attend_many, suits
from diptych.core.precision import CPU_MULTIPLIES_BFLOAT16
from diptych.core.together import left_out


@pytest.mark.parametrize("shape", [(2, 3, 700, 1024, 40, 3), (1, 4, 513, 1100, 64, 2), (1, 8, 130, 1024, 16, 8)])
def test_blocks_give_what_one_piece_gives(shape: tuple[int, ...]) -> None:
    """As near to float32 as torch's own bfloat16 kernel, times two; rows that do not fill a block included."""
    batch, heads, count, keys, width, kv_heads = shape
    random = torch.Generator().manual_seed(0)
    q = torch.randn(batch, count, heads, width, generator=random).bfloat16().transpose(1, 2)
    k, v = (torch.randn(batch, keys, kv_heads, width, generator=random).bfloat16().transpose(1, 2) for _ in "kv")
    exact = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), enable_gqa=True)
    torchs = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    found = attend_many(q, k, v)
    assert found.shape == exact.shape
    assert (found - exact).square().mean().sqrt() < 2 * (torchs - exact).square().mean().sqrt() + 1e-4


def test_only_what_sees_everything_and_learns_nothing_comes_here(monkeypatch: pytest.MonkeyPatch) -> None:
    q = torch.randn(1, 1, MANY, 16, dtype=torch.bfloat16)
    mask = torch.ones(1, 1, MANY, MANY, dtype=torch.bool)
    with torch.no_grad():
        assert suits(q, q, q, None, False) == CPU_MULTIPLIES_BFLOAT16
        assert not suits(q, q, q, mask, False)
        assert not suits(q, q, q, None, True)
        assert not suits(q, q[:, :, 1:], q[:, :, 1:], None, False)
        assert not suits(q.float(), q.float(), q.float(), None, False)
    assert not suits(q, q, q, None, False)
    called = []
    monkeypatch.setattr(many_queries, "attend_many", lambda *heads: called.append(heads) or q)
    with torch.no_grad(), left_out():
        attend(q, q, q)
    assert len(called) == CPU_MULTIPLIES_BFLOAT16
