"""What a network is told besides the noisy picture and its noise level: the prompt, as it came from the encoders."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Condition:
    """Prompts as the network sees them.

    Args:
        context: (B, S, C), a vector a word.
        mask: (B, S), bool, True where there is a word; None where all of the context may be looked at.
        pooled: (B, P), a vector of each whole prompt, for networks that want one.
        numbers: (B, K), float32, what else a network wants to know: sizes in pixels, or the guidance that it imitates.
    """

    context: Tensor
    mask: Tensor | None = None
    pooled: Tensor | None = None
    numbers: Tensor | None = None

    def __len__(self) -> int:
        return len(self.context)

    def __getitem__(self, rows: slice | Tensor) -> "Condition":
        return Condition(*(None if part is None else part[rows] for part in self._parts()))  # type: ignore[arg-type]

    def repeat(self, count: int) -> "Condition":
        """Each prompt `count` times."""
        parts = (None if part is None else part.repeat_interleave(count, 0) for part in self._parts())
        return Condition(*parts)  # type: ignore[arg-type]

    def told(self, numbers: Sequence[float]) -> "Condition":
        """The same with these numbers for each prompt; none is none."""
        if not numbers:
            return self
        row = torch.tensor(list(numbers), dtype=torch.float32, device=self.context.device)
        return Condition(self.context, self.mask, self.pooled, row.expand(len(self), -1))

    def _parts(self) -> tuple[Tensor | None, ...]:
        return self.context, self.mask, self.pooled, self.numbers


def join(conditions: Sequence[Condition]) -> Condition:
    """One batch of all. Shorter contexts are padded with what the mask hides."""
    if len(conditions) == 1:
        return conditions[0]
    longest = max(one.context.shape[1] for one in conditions)
    has_mask = any(one.mask is not None or one.context.shape[1] < longest for one in conditions)
    return Condition(
        torch.cat([_padded(one.context, longest) for one in conditions]),
        torch.cat([_mask(one, longest) for one in conditions]) if has_mask else None,
        _cat([one.pooled for one in conditions]),
        _cat([one.numbers for one in conditions]),
    )


def blend(one: Condition, other: Condition, share: float) -> Condition:
    """A prompt between two: `share` of the way from one to the other, word by word, each word along an arc.

    The ends are the prompts themselves. Between them the shorter one says its last word (the end of the text) again and
    again, since what lies behind it was never meant to be looked at.
    """
    if share in (0, 1):
        return other if share else one
    longest = max(one.context.shape[1], other.context.shape[1])
    mask = None
    if one.mask is not None or other.mask is not None or one.context.shape[1] != other.context.shape[1]:
        mask = _mask(one, longest) | _mask(other, longest)
    pooled = one.pooled
    if pooled is not None and other.pooled is not None:
        pooled = arc(pooled, other.pooled, share)
    context = arc(_drawn_out(one, longest), _drawn_out(other, longest), share)
    return Condition(context, mask, pooled, one.numbers)


def arc(one: Tensor, other: Tensor, share: float) -> Tensor:
    """Between vectors (..., C): their directions along a great circle (Shoemake 1985, "slerp"), their lengths in a
    straight line. Where the directions are the same, or opposite, that is a straight line."""
    lengths = [vector.float().norm(dim=-1, keepdim=True) for vector in (one, other)]
    a, b = (vector.float() / norm.clamp(min=1e-12) for vector, norm in zip((one, other), lengths, strict=True))
    cosine = (a * b).sum(-1, keepdim=True)
    angle = torch.atan2((a - cosine * b).norm(dim=-1, keepdim=True), cosine)
    sine = angle.sin().clamp(min=1e-4)
    weights = [torch.where(sine > 1e-4, (part * angle).sin() / sine, part) for part in (1 - share, share)]
    between: Tensor = (weights[0] * a + weights[1] * b) * torch.lerp(lengths[0], lengths[1], share)
    return between.to(one.dtype)


def _drawn_out(condition: Condition, length: int) -> Tensor:
    """The context (B, length, C), its last word that may be looked at in the place of all that may not."""
    mask = _mask(condition, length)
    places = torch.arange(length, device=mask.device).expand_as(mask)
    last = torch.where(mask, places, -1).amax(1, keepdim=True).clamp(min=0)
    chosen = torch.where(mask, places, last)
    return _padded(condition.context, length).gather(1, chosen[..., None].expand(-1, -1, condition.context.shape[-1]))


def _padded(context: Tensor, length: int) -> Tensor:
    return F.pad(context, (0, 0, 0, length - context.shape[1]))


def _mask(condition: Condition, length: int) -> Tensor:
    mask = condition.mask
    if mask is None:
        mask = torch.ones(condition.context.shape[:2], dtype=torch.bool, device=condition.context.device)
    return F.pad(mask, (0, length - mask.shape[1]))


def _cat(parts: Sequence[Tensor | None]) -> Tensor | None:
    found = [part for part in parts if part is not None]
    return torch.cat(found) if found else None
