"""Rotary positions (Su et al. 2021): query and key are turned by their position, so their product sees the distance.

A model that was trained on short texts has never seen most of the angles of a long one. `RopeScaling` turns more
slowly, so that the distances of a long text come to angles that were seen; its kinds differ in which pairs of
components slow down.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor

from diptych.core.checks import check_keys, is_number, is_whole
from diptych.core.spelling import unknown

# The settings that each kind has besides factor and original_context.
KINDS: dict[str, tuple[str, ...]] = {
    "linear": (),
    "ntk": (),
    "dynamic": (),
    "yarn": ("beta_fast", "beta_slow", "truncates", "attention_factor", "mscale", "mscale_all_dim"),
    "llama3": ("low_freq_factor", "high_freq_factor"),
}


@dataclass(frozen=True)
class RopeScaling:
    """How a model that was trained on `original_context` tokens turns more slowly, for longer texts.

    Args:
        kind: "linear": every pair by `factor` (Chen et al. 2023). "ntk": by a larger theta, the slowest pair by
            `factor` and the fastest not at all (bloc97 2023). "dynamic": the same, with a factor that grows with the
            text from 1 at `original_context`. "yarn": pairs that turn seldom within `original_context` by `factor`,
            those that turn often not at all, and attention is sharper (Peng et al. 2023). "llama3": alike, with
            Llama 3.1's borders.
        factor: how many times longer the text may be; at least 1.
        original_context: tokens; "dynamic", "yarn" and "llama3" need it.
        low_freq_factor, high_freq_factor: turns within `original_context` up to which a pair is slowed down in full,
            and from which on it is left alone ("llama3").
        beta_slow, beta_fast: the same two borders for "yarn".
        truncates: whether these are moved out to whole pairs.
        attention_factor: what query and key are each multiplied by ("yarn"); None is 0.1 ln(factor) + 1 (Peng et al.
            2023, eq. 22).
        mscale, mscale_all_dim: with both and no attention factor, it is (0.1 mscale ln(factor) + 1) over the same with
            mscale_all_dim, as DeepSeek's checkpoints have it.
    """

    kind: str
    factor: float
    original_context: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncates: bool = True
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown("rope_scaling kind", str(self.kind), KINDS)
        own = ("kind", "factor", "original_context", *KINDS[self.kind])
        for field in fields(self)[1:]:
            name, value = f"rope_scaling.{field.name}", getattr(self, field.name)
            if field.name not in own and value != field.default:
                raise ValueError(f"{name} does not go with the kind '{self.kind}'")
            if field.type is bool and not isinstance(value, bool):
                raise ValueError(f"{name} must be true or false, not {value!r}")
            if field.type is int and not (is_whole(value) and value >= 0):
                raise ValueError(f"{name} must be a whole number >= 0, not {value!r}")
            if field.type in (float, float | None) and value is not None and not (is_number(value) and value > 0):
                raise ValueError(f"{name} must be a finite number > 0, not {value!r}")
        if self.factor < 1:
            raise ValueError(f"rope_scaling.factor must be a number >= 1, not {self.factor}")
        if self.kind in ("dynamic", "yarn", "llama3") and not self.original_context:
            raise ValueError(f"rope_scaling of the kind '{self.kind}' needs original_context, in tokens")
        for low, high in (("low_freq_factor", "high_freq_factor"), ("beta_slow", "beta_fast")):
            if getattr(self, low) >= getattr(self, high):
                raise ValueError(f"rope_scaling.{low} must be below {high}, not {getattr(self, low)}")

    @classmethod
    def from_dict(cls, entries: Mapping[str, Any]) -> Self:
        """Raises: ValueError for a key that is not known, is missing, or has an impossible value."""
        known = [field.name for field in fields(cls)]
        check_keys("rope_scaling", entries, known)
        missing = [key for key in ("kind", "factor") if key not in entries]
        if missing:
            raise ValueError(f"rope_scaling lacks {', '.join(missing)}")
        return cls(**entries)

    def to_dict(self) -> dict[str, Any]:
        """The settings that its kind has."""
        return {name: getattr(self, name) for name in ("kind", "factor", "original_context", *KINDS[self.kind])}

    @property
    def sharpness(self) -> float:
        """What query and key are each multiplied by."""
        if self.kind != "yarn":
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        grown = 0.1 * math.log(self.factor)
        if self.mscale and self.mscale_all_dim:
            return (grown * self.mscale + 1) / (grown * self.mscale_all_dim + 1)
        return grown + 1


def rotary(
    positions: Tensor,
    head_dim: int,
    theta: float = 10000.0,
    scaling: RopeScaling | None = None,
    *,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the angles position * theta^(-2i / head_dim), or of `scaling`'s.

    Args:
        positions: (B, T), integers.
        lengths: (B, T), tokens of the text when each token is read, on which the angles of "dynamic" depend; when None
            it is read whole. What a cache keeps stays turned as it was while the text grows on, as it does in other
            implementations.

    Returns:
        (cos, sin), each (B, 1, T, head_dim), float32: of every component, the sine with the sign that it comes in with.
    """
    exponent = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    if scaling is None:
        turns = theta**-exponent
    else:
        lengths = positions.amax(dim=1, keepdim=True) + 1 if lengths is None else lengths
        turns = scaled_frequencies(exponent, head_dim, theta, scaling, lengths)
    angles = positions.float()[:, None, :, None] * turns
    cos, sin = angles.cos(), angles.sin()
    if scaling is not None and scaling.sharpness != 1:
        cos, sin = cos * scaling.sharpness, sin * scaling.sharpness
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def scaled_frequencies(exponent: Tensor, head_dim: int, theta: float, scaling: RopeScaling, lengths: Tensor) -> Tensor:
    """Radians for each token further.

    Args:
        exponent: 2i / head_dim, (head_dim / 2,), float32.
        lengths: (B, T or 1), tokens of the text.

    Returns:
        (head_dim / 2,), float32; for "dynamic" (B, 1, T or 1, head_dim / 2).
    """
    factor, original = scaling.factor, scaling.original_context
    if scaling.kind == "dynamic":
        longer = factor * lengths.clamp(min=original).float() / original - (factor - 1)
        larger = theta * longer ** (head_dim / (head_dim - 2))
        return larger[:, None, :, None].pow(-exponent)
    if scaling.kind == "ntk":
        theta = theta * factor ** (head_dim / (head_dim - 2))
    turns = theta**-exponent
    if scaling.kind == "linear":
        turns = turns / factor
    elif scaling.kind == "yarn":
        turns = _slowed(turns, factor, _kept_by_yarn(scaling, head_dim, theta, exponent))
    elif scaling.kind == "llama3":
        turns = _slowed(turns, factor, _kept_by_llama3(scaling, turns))
    return turns


def _slowed(turns: Tensor, factor: float, kept: Tensor) -> Tensor:
    return turns * (kept + (1 - kept) / factor)


def _kept_by_yarn(scaling: RopeScaling, head_dim: int, theta: float, exponent: Tensor) -> Tensor:
    """How far each pair keeps its frequency, from 1 down to 0: a ramp over the pairs between those that turn
    `beta_fast` and `beta_slow` times within the original context (Peng et al. 2023, eq. 17-18)."""

    def pair(turns: float) -> float:
        return head_dim * math.log(scaling.original_context / (2 * math.pi * turns)) / (2 * math.log(theta))

    first, last = pair(scaling.beta_fast), pair(scaling.beta_slow)
    if scaling.truncates:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    last += 0.001 if first == last else 0  # a step in place of a ramp
    pairs = torch.arange(head_dim // 2, device=exponent.device, dtype=torch.float32)
    return 1 - ((pairs - first) / (last - first)).clamp(0, 1)


def _kept_by_llama3(scaling: RopeScaling, frequencies: Tensor) -> Tensor:
    """The same, a ramp over the turns themselves."""
    turns = scaling.original_context * frequencies / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    return ((turns - low) / (high - low)).clamp(0, 1)


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor, pairs_neighbours: bool = False) -> Tensor:
    """Turn x (B, H, T, D): component i is paired with component i + D/2, as in Llama's published weights.

    The angles are taken to the dtype of x, as other implementations do.

    Args:
        pairs_neighbours: component 2i is paired with 2i + 1 instead, as Su et al. 2021 (eq. 34) wrote it; cos and sin
            must lie so, too.
    """
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    if not torch.is_grad_enabled():
        return _turned(x, cos, sin, pairs_neighbours)
    turned: Tensor = _Turn.apply(x, cos, sin, pairs_neighbours)  # type: ignore[no-untyped-call]
    return turned


class _Turn(torch.autograd.Function):
    """The gradient of a turn is turned back: nothing but the angles is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, pairs_neighbours: bool) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.pairs_neighbours = pairs_neighbours
        return _turned(x, cos, sin, pairs_neighbours)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return _turned(gradient, cos, -sin, ctx.pairs_neighbours), None, None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor, pairs_neighbours: bool) -> Tensor:
    # Whole rows at a time: operations on halves of rows are slow on a CPU.
    crossed: Tensor = (
        x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2) if pairs_neighbours else x.roll(x.shape[-1] // 2, -1)
    )
    return crossed.mul_(sin).addcmul_(x, cos)
