"""Against torch's own attention, which knows nothing of shared rows, and against the softmax written out."""

import math

import pytest
import torch
import torch.nn.functional as F

from diptych.core.few_queries import additive, attend_few


def draws(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (4, 1)])
def test_it_is_attention_over_what_may_be_looked_at(heads: int, kv_heads: int, count: int) -> None:
    q, room = draws(2, heads, count, 8, seed=1), draws(2, 3, kv_heads, 20, 8, seed=2)
    k, v = room[0, :2], room[1, :2, :, :20]
    places = torch.tensor([[11 + place for place in range(count)], [4 + place for place in range(count)]])
    mask = (torch.arange(20) <= places[..., None])[:, None]
    k[:, :, 14:], v[:, :, 14:] = 1e3, -1e3  # what lies past a text's end
    found = attend_few(q, k, v, additive(mask, q.dtype))
    groups = heads // kv_heads
    k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    torch.testing.assert_close(found, F.scaled_dot_product_attention(q, k, v, attn_mask=mask))


def test_a_softcap_bends_the_scores() -> None:
    q, k, v = draws(1, 2, 1, 8, seed=1) * 9, draws(1, 2, 5, 8, seed=2), draws(1, 2, 5, 8, seed=3)
    mask = torch.tensor([True, True, True, False, True]).expand(1, 1, 1, 5)
    scores = 2.0 * torch.tanh(q @ k.mT / math.sqrt(8) / 2.0)
    expected = torch.softmax(scores.masked_fill(~mask, -math.inf), dim=-1) @ v
    torch.testing.assert_close(attend_few(q, k, v, additive(mask, q.dtype), softcap=2.0), expected)
