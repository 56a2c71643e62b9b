"""Scaled rotary positions against transformers' own frequencies, and against what each kind says of itself."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from diptych.core.positions import KINDS, RopeScaling, rotary

HEAD_DIM, ORIGINAL = 64, 2048
THEIR_NAMES = {"original_context": "original_max_position_embeddings", "truncates": "truncate"}


def their_config(scaling: RopeScaling, theta: float) -> LlamaConfig:
    settings = {THEIR_NAMES.get(key, key): value for key, value in scaling.to_dict().items() if value is not None}
    settings["rope_type"] = settings.pop("kind")
    if scaling.kind in ("linear", "dynamic"):
        del settings["original_max_position_embeddings"]
    context = ORIGINAL if scaling.kind == "dynamic" else int(ORIGINAL * scaling.factor)
    return LlamaConfig(
        head_dim=HEAD_DIM,
        hidden_size=4 * HEAD_DIM,
        num_attention_heads=4,
        max_position_embeddings=context,
        rope_parameters={**settings, "rope_theta": theta},
    )


def frequencies(scaling: RopeScaling | None, theta: float, length: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Read from the angles at position 1; and the radius of the turn, which is the sharpness."""
    cos, sin = rotary(torch.tensor([[1]]), HEAD_DIM, theta, scaling, lengths=torch.tensor([[length]]))
    cos, sin = (part.flatten()[HEAD_DIM // 2 :] for part in (cos, sin))
    return torch.atan2(sin, cos), torch.hypot(sin, cos)


@pytest.mark.parametrize("theta", [10000.0, 500000.0])
@pytest.mark.parametrize(
    "scaling",
    [
        RopeScaling("linear", 4.0),
        RopeScaling("yarn", 8.0, ORIGINAL),
        RopeScaling("yarn", 40.0, ORIGINAL, beta_fast=16.0, beta_slow=2.5, truncates=False, attention_factor=0.7),
        RopeScaling("yarn", 16.0, ORIGINAL, mscale=0.707, mscale_all_dim=1.0),
        RopeScaling("yarn", 16.0, ORIGINAL, mscale=0.707),
        RopeScaling("yarn", 2.0, 40, beta_fast=1000.0, beta_slow=900.0),
        RopeScaling("llama3", 8.0, ORIGINAL),
        RopeScaling("llama3", 32.0, ORIGINAL, low_freq_factor=0.5, high_freq_factor=9.0),
    ],
    ids=str,
)
def test_frequencies_and_sharpness_are_those_of_the_reference(scaling, theta):
    theirs, factor = ROPE_INIT_FUNCTIONS[scaling.kind](their_config(scaling, theta))
    ours, radius = frequencies(scaling, theta)
    assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-9)
    assert torch.allclose(radius, torch.full_like(radius, factor), rtol=1e-6)


@pytest.mark.parametrize("length", [5, ORIGINAL, ORIGINAL + 1, 3 * ORIGINAL, 50_000])
def test_dynamic_scaling_follows_the_length_of_the_text_as_the_reference_does(length):
    scaling = RopeScaling("dynamic", 4.0, ORIGINAL)
    theirs, factor = ROPE_INIT_FUNCTIONS["dynamic"](their_config(scaling, 10000.0), seq_len=length)
    ours, _ = frequencies(scaling, 10000.0, length)
    assert factor == 1.0
    assert torch.allclose(ours, theirs, rtol=1e-6)


def test_a_text_that_grows_past_its_context_is_turned_as_in_the_reference_call_by_call():
    """Prefill, then a token at a time: each call turns by the length it reaches."""
    scaling = RopeScaling("dynamic", 2.0, ORIGINAL)
    reference = LlamaRotaryEmbedding(their_config(scaling, 10000.0))
    for start, end in ((0, 2040), (2040, 2041), (2041, 3000), (3000, 3001), (3001, 3002)):
        positions = torch.arange(start, end)[None]
        cos, sin = reference(torch.zeros(1), positions)
        ours = rotary(positions, HEAD_DIM, 10000.0, scaling)
        signs = torch.ones(HEAD_DIM)
        signs[: HEAD_DIM // 2] = -1
        assert torch.allclose(ours[0][:, 0], cos, atol=2e-3)  # 3,000 radians in float32
        assert torch.allclose(ours[1][:, 0], signs * sin, atol=2e-3)


def test_rows_of_different_lengths_do_not_change_each_other():
    scaling = RopeScaling("dynamic", 2.0, 8)
    positions = torch.tensor([[0, 1, 2], [20, 21, 22]])
    together = rotary(positions, HEAD_DIM, 10000.0, scaling)
    for row in (0, 1):
        alone = rotary(positions[row : row + 1], HEAD_DIM, 10000.0, scaling)
        assert all(torch.equal(part[row : row + 1], own) for part, own in zip(together, alone, strict=True))


def test_ntk_is_the_dynamic_kind_at_the_length_where_it_stretches_as_much():
    """f' s / L - (f' - 1) = f at s = L (f + f' - 1) / f'; and the slowest pair is slowed down by f, the fastest not."""
    factor = 4.0
    dynamic = their_config(RopeScaling("dynamic", factor, ORIGINAL), 10000.0)
    theirs, _ = ROPE_INIT_FUNCTIONS["dynamic"](dynamic, seq_len=int(ORIGINAL * (2 * factor - 1) / factor))
    ours, plain = (frequencies(scaling, 10000.0)[0] for scaling in (RopeScaling("ntk", factor), None))
    assert torch.allclose(ours, theirs, rtol=1e-6)
    assert torch.allclose((plain / ours)[[0, -1]], torch.tensor([1.0, factor]), rtol=1e-5)


def test_settings_come_back_from_what_is_written_down():
    for scaling in (RopeScaling("yarn", 8.0, 512, mscale=1.0, mscale_all_dim=0.5), RopeScaling("llama3", 2, 9)):
        assert RopeScaling.from_dict(scaling.to_dict()) == scaling
    assert set(RopeScaling("linear", 2.0).to_dict()) == {"kind", "factor", "original_context"}
    assert {RopeScaling(kind, 2.0, 64).sharpness for kind in KINDS if kind != "yarn"} == {1.0}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kind": "yarm", "factor": 2.0}, "unknown rope_scaling kind 'yarm'; did you mean 'yarn'?"),
        ({"kind": "linear"}, "rope_scaling lacks factor"),
        ({"kind": "linear", "factr": 2.0}, "unknown rope_scaling setting 'factr'; did you mean 'factor'?"),
        ({"kind": "linear", "factor": 0.5}, "rope_scaling.factor must be a number >= 1, not 0.5"),
        ({"kind": "linear", "factor": float("nan")}, "rope_scaling.factor must be a finite number > 0, not nan"),
        ({"kind": "linear", "factor": True}, "rope_scaling.factor must be a finite number > 0, not True"),
        ({"kind": "linear", "factor": 2.0, "beta_slow": 3.0}, "rope_scaling.beta_slow does not go with the kind"),
        ({"kind": "yarn", "factor": 2.0}, "rope_scaling of the kind 'yarn' needs original_context, in tokens"),
        ({"kind": "yarn", "factor": 2.0, "original_context": 8.5}, "original_context must be a whole number >= 0"),
        ({"kind": "yarn", "factor": 2.0, "original_context": 8, "beta_fast": 1}, "beta_slow must be below beta_fast"),
        ({"kind": "yarn", "factor": 2.0, "original_context": 8, "truncates": 1}, "truncates must be true or false"),
    ],
)
def test_impossible_settings_are_refused_in_one_line(settings, said):
    with pytest.raises(ValueError) as refused:
        RopeScaling.from_dict(settings)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
