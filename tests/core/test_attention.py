"""Attention against a softmax written out in float64, in every form that the two panels use."""

import math

import pytest
import torch

from diptych.core.attention import Attention, within_window
from diptych.core.positions import apply_rotary, rotary

BATCH, QUERIES, KEYS, WIDTH = 2, 6, 9, 24


def attention(seed: int = 0, **settings) -> Attention:
    torch.manual_seed(seed)
    layer = Attention(WIDTH, settings.pop("num_heads", 4), **settings).double()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return layer


def draws(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def written_out(layer: Attention, x, source, mask=None, cos_sin=None):
    """softmax(q k^T / sqrt(d)) v, one batch row, one head and one query at a time."""
    heads, kv_heads, size = layer.num_heads, layer.num_kv_heads, layer.head_dim
    project = torch.nn.functional.linear
    queries = project(x, layer.query.weight, layer.query.bias)
    keys = project(source, layer.key.weight, layer.key.bias)
    values = project(source, layer.value.weight, layer.value.bias)
    rows = []
    for b in range(x.shape[0]):
        heads_seen = []
        for h in range(heads):
            shared = h // (heads // kv_heads)  # which key-value head this query head looks through
            q = queries[b, :, h * size : (h + 1) * size]
            k = keys[b, :, shared * size : (shared + 1) * size]
            v = values[b, :, shared * size : (shared + 1) * size]
            if layer.query_norm is not None:
                q = q / (q.square().mean(-1, keepdim=True) + layer.query_norm.eps).sqrt() * layer.query_norm.weight
                k = k / (k.square().mean(-1, keepdim=True) + layer.key_norm.eps).sqrt() * layer.key_norm.weight
            if cos_sin is not None:
                q, k = (apply_rotary(y[None, None], *(part[b : b + 1] for part in cos_sin))[0, 0] for y in (q, k))
            seen = []
            for t in range(len(q)):
                scores = k @ q[t] / math.sqrt(size)
                if layer.softcap:
                    scores = layer.softcap * torch.tanh(scores / layer.softcap)
                if mask is not None:
                    scores = scores.masked_fill(~mask.expand(x.shape[0], 1, len(q), len(k))[b, 0, t], -math.inf)
                weights = (scores - scores.max()).exp()
                seen.append((weights / weights.sum()) @ v)
            heads_seen.append(torch.stack(seen))
        rows.append(torch.cat(heads_seen, dim=-1))
    return project(torch.stack(rows), layer.output.weight, layer.output.bias)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_kv_heads": 2},
        {"num_kv_heads": 1, "has_qkv_bias": True, "has_output_bias": True},
        {"head_dim": 10, "has_qkv_bias": True},
        {"num_heads": 1},
        {"has_qk_norm": True, "num_kv_heads": 2, "norm_eps": 1e-2},
        {"num_kv_heads": 2, "softcap": 1.5},
    ],
)
def test_self_attention_is_the_written_out_softmax(settings):
    layer, x = attention(**settings), draws(BATCH, QUERIES, WIDTH)
    tolerance = 1e-6 if "has_qk_norm" in settings else 1e-12  # norms compute in float32
    assert torch.allclose(layer(x), written_out(layer, x, x), atol=tolerance)


@pytest.mark.parametrize("settings", [{}, {"num_kv_heads": 2}])
def test_cross_attention_looks_at_the_context_only_through_its_mask(settings):
    layer = attention(context_width=7, **settings)
    x, context = draws(BATCH, QUERIES, WIDTH), draws(BATCH, KEYS, 7, seed=2)
    mask = torch.arange(KEYS) < torch.tensor([4, KEYS])[:, None, None, None]  # rows of different lengths
    assert torch.allclose(layer(x, context=context), written_out(layer, x, context), atol=1e-12)
    assert torch.allclose(layer(x, context=context, mask=mask), written_out(layer, x, context, mask), atol=1e-12)
    changed = context.clone()
    changed[0, 4:] += 100
    assert torch.equal(layer(x, context=changed, mask=mask), layer(x, context=context, mask=mask))


def test_causal_attention_is_the_lower_triangle_and_never_looks_ahead():
    layer, x = attention(num_kv_heads=2), draws(BATCH, QUERIES, WIDTH)
    triangle = torch.ones(QUERIES, QUERIES, dtype=torch.bool).tril()
    seen = layer(x, is_causal=True)
    layer.softcap = 1e9  # as good as none
    assert torch.allclose(layer(x, is_causal=True), seen, atol=1e-12)
    layer.softcap = 0.0
    assert torch.allclose(seen, written_out(layer, x, x, triangle[None, None]), atol=1e-12)
    changed = x.clone()
    changed[:, 3:] += 100
    assert torch.allclose(layer(changed, is_causal=True)[:, :3], seen[:, :3], atol=1e-12)


def test_a_mask_is_taken_as_it_is_where_both_are_given():
    layer, x = attention(), draws(BATCH, QUERIES, WIDTH)
    block = torch.eye(QUERIES, dtype=torch.bool)[None, None]  # causal, and more than that
    assert torch.equal(layer(x, mask=block, is_causal=True), layer(x, mask=block))


def test_rotary_attention_depends_only_on_the_distance_between_positions():
    """Su et al. 2021, eq. 16: moving every position by the same number changes nothing; stretching them does."""
    layer, x = attention(num_kv_heads=2, head_dim=8), draws(BATCH, QUERIES, WIDTH)
    positions = torch.arange(QUERIES)[None].expand(BATCH, -1)
    here, moved, stretched = (layer(x, rotary=rotary(at, 8)) for at in (positions, positions + 1000, positions * 2))
    assert torch.allclose(here, moved, atol=2e-4)  # angles are float32
    assert not torch.allclose(here, stretched, atol=1e-2)
    assert torch.allclose(here, written_out(layer, x, x, cos_sin=rotary(positions, 8)), atol=1e-5)


def test_rotary_turns_pairs_by_the_angles_of_the_paper():
    """As multiplication of complex numbers: component i with component i + D/2, angle position * theta^(-2i/D)."""
    x = draws(1, 1, 3, 8)
    positions = torch.tensor([[0, 5, 70]])
    turned = apply_rotary(x, *rotary(positions, 8, theta=500.0))
    for place, position in enumerate((0, 5, 70)):
        for i in range(4):
            before = complex(x[0, 0, place, i], x[0, 0, place, i + 4])
            angle = position * 500.0 ** (-2 * i / 8)
            after = before * complex(math.cos(angle), math.sin(angle))
            assert complex(turned[0, 0, place, i], turned[0, 0, place, i + 4]) == pytest.approx(after, abs=1e-5)


def test_rotary_keeps_lengths_and_dtype():
    x = draws(2, 3, 4, 16)
    cos, sin = rotary(torch.arange(4)[None].expand(2, -1), 16)
    assert (cos.shape, cos.dtype) == ((2, 1, 4, 16), torch.float32)
    assert torch.allclose(apply_rotary(x, cos, sin).norm(dim=-1), x.norm(dim=-1), atol=1e-5)
    assert apply_rotary(x.bfloat16(), cos, sin).dtype == torch.bfloat16


def test_a_store_gives_the_whole_past_one_token_at_a_time():
    """With keys and values kept, token by token equals all at once: what the cache relies on."""
    layer, x = attention(num_kv_heads=2, has_qk_norm=True, head_dim=8), draws(BATCH, QUERIES, WIDTH)
    positions = torch.arange(QUERIES)[None].expand(BATCH, -1)
    whole = layer(x, rotary=rotary(positions, 8), is_causal=True)
    past: list[tuple[torch.Tensor, torch.Tensor]] = []

    def store(k, v):
        assert k.shape == v.shape == (BATCH, 2, 1, 8)
        past.append((k, v))
        return torch.cat([k for k, _ in past], dim=2), torch.cat([v for _, v in past], dim=2)

    for t in range(QUERIES):
        one = layer(x[:, t : t + 1], rotary=rotary(positions[:, t : t + 1], 8), store=store)
        assert torch.allclose(one, whole[:, t : t + 1], atol=1e-6)


def test_qk_norm_makes_the_scores_blind_to_the_size_of_the_input():
    layer = attention(has_qk_norm=True)
    x = draws(BATCH, QUERIES, WIDTH)
    assert torch.allclose(layer(3 * x), 3 * layer(x), atol=1e-4)


@pytest.mark.parametrize(
    ("heads", "settings", "named"),
    [(5, {}, r"width \(24\)"), (4, {"num_kv_heads": 3}, r"num_kv_heads \(3\)"), (0, {}, "num_heads"),
     (4, {"num_kv_heads": 0}, "num_kv_heads")],
)  # fmt: skip
def test_heads_that_do_not_divide_are_named(heads, settings, named):
    with pytest.raises(ValueError, match=named):
        Attention(WIDTH, heads, **settings)


def test_the_gradient_of_a_turn_is_that_of_its_formula():
    x = draws(2, 3, 4, 8).requires_grad_()
    cos, sin = rotary(torch.arange(4)[None].expand(2, -1), 8)
    assert torch.autograd.gradcheck(lambda x: apply_rotary(x, cos.double(), sin.double()), x)
    pull = draws(2, 3, 4, 8, seed=5)
    apply_rotary(x, cos, sin).backward(pull)
    first, second = pull.chunk(2, dim=-1)
    cos, sin = cos[..., 4:], sin[..., 4:]
    expected = torch.cat((first * cos + second * sin, second * cos - first * sin), dim=-1)
    assert torch.allclose(x.grad, expected, atol=1e-12)


def test_a_window_is_a_token_and_those_just_before_it():
    """Counted out, for queries in the middle of longer keys, and with a mask that hides one key more."""
    places, mask = torch.tensor([[3, 4, 5], [0, 1, 2]]), torch.ones(1, 1, 1, 7, dtype=torch.bool)
    mask[..., 4] = False
    for given in (None, mask):
        seen = within_window(given, places, 7, 3)
        for row in range(2):
            for query, place in enumerate(places[row].tolist()):
                near = {key for key in range(7) if place - 3 < key <= place} - (set() if given is None else {4})
                assert set(seen[row, 0, query].nonzero()[:, 0].tolist()) == near


@pytest.mark.parametrize("scale", [None, 1.0])
@pytest.mark.parametrize("masking", ["none", "causal", "mask"])
def test_a_bias_is_added_to_scores_of_a_scale_of_their_own(scale, masking):
    """Against the formula written out, with two heads of keys for four of queries."""
    torch.manual_seed(0)
    layer = Attention(16, 4, num_kv_heads=2, scale=scale)
    x, bias = torch.randn(2, 5, 16), torch.randn(1, 4, 5, 5)
    seen = torch.tensor([[True] * 5, [True, True, False, True, False]])[:, None, None]
    mask = {"none": torch.ones(5, 5), "causal": torch.ones(5, 5).tril(), "mask": seen}[masking].bool()
    q = layer.query(x).unflatten(-1, (4, 4)).transpose(1, 2)
    k, v = (
        part(x).unflatten(-1, (2, 4)).transpose(1, 2).repeat_interleave(2, dim=1) for part in (layer.key, layer.value)
    )
    scores = q @ k.mT * (0.5 if scale is None else scale) + bias
    odds = torch.softmax(scores.masked_fill(~mask, -math.inf), dim=-1)
    expected = layer.output((odds @ v).transpose(1, 2).flatten(2))
    found = layer(x, bias=bias, mask=seen if masking == "mask" else None, is_causal=masking == "causal")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
