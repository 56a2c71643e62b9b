"""What a layer keeps of a text, and where it lies: all of it, or what its window still reaches, in a ring.

Of a ring with the window w the token at position p lies at place p mod (w + spare), over the one that has just gone out
of sight; the spare places let the last few tokens be taken back. Attention sinks are the first few places, which are
never written over (Xiao et al. 2023).
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Span:
    """Args: window: tokens that attention reaches back, the token itself included; 0 keeps all of the text.
    sinks: of the first tokens, which stay. spare: tokens that may be taken back."""

    window: int = 0
    sinks: int = 0
    spare: int = 0

    @property
    def ring(self) -> int:
        return self.window + self.spare

    @property
    def is_streaming(self) -> bool:
        return self.sinks > 0

    def room(self, length: int) -> int:
        """Places for a text of `length` tokens."""
        return min(length, self.sinks + self.ring) if self.window else length

    def places(self, positions: Tensor) -> Tensor:
        """Where the tokens at these positions lie."""
        if not self.window:
            return positions
        in_ring = self.sinks + (positions - self.sinks) % self.ring
        return torch.where(positions < self.sinks, positions, in_ring)

    def positions(self, lengths: Tensor, reach: int) -> Tensor:
        """The position of the token at each of the first `reach` places, -1 where there is none: (B, reach).

        Args:
            lengths: (B,), of the texts.
        """
        place, last = torch.arange(reach, device=lengths.device)[None], lengths[:, None] - 1
        found = place.expand(len(lengths), -1)
        if self.window:
            behind = (last - place) % self.ring  # the newest token there is so far behind the last
            found = torch.where(place < self.sinks, place, (last - behind).clamp(min=-1))
            found = torch.where((place >= self.sinks) & (found < self.sinks), -1, found)
        return torch.where(found <= last, found, -1)

    def within(self, positions: Tensor, lengths: Tensor) -> Tensor:
        """Positions counted within what is kept, without a gap between the sinks and the ring.

        Args:
            positions: (B, N); -1 is none, and becomes 0.
            lengths: (B, 1), of the texts.
        """
        dropped = (lengths - self.sinks - self.window).clamp(min=0)
        return torch.where(positions < self.sinks, positions, positions - dropped).clamp(min=0)

    def narrowed(self, window: int) -> "Span":
        """For a layer that looks back `window` tokens of what is kept; 0 is all of it."""
        return replace(self, window=min(window, self.window)) if window else self

    def mask(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Which keys each query may look at: bool, (B, 1, T, S).

        Args:
            queries, keys: positions, (B, T) and (B, S); -1 is no key.
        """
        query, key = queries[:, None, :, None], keys[:, None, None, :]
        is_seen = (key >= 0) & (key <= query)
        if self.window:
            is_seen &= (query - key < self.window) | (key < self.sinks)
        return is_seen
