"""What a U-Net is made of: residual blocks that feel the noise level, and transformers over places."""

from dataclasses import dataclass

from torch import Tensor, nn

from diptych.core.attention import Attention
from diptych.core.convolution import convolved
from diptych.core.feedforward import FeedForward, activated
from diptych.core.fused import linear_plus
from diptych.core.linear import Linear
from diptych.core.norms import NORMS, branch


@dataclass(frozen=True, kw_only=True)
class BlockSwitches:
    """How the blocks of a U-Net are built; the sizes are of the U-Net. The defaults are the house's own.

    Args:
        groups: of the group norms.
        has_scale: the noise level scales and shifts a residual block's second norm (Dhariwal & Nichol 2021, sec. 3);
            otherwise it is added before it (Ho et al. 2020, app. B).
        context_width: of the prompt's vectors; 0 has no prompt.
        norm, norm_eps, has_qk_norm, has_bias: of a transformer's blocks; the bias is that of what leaves an attention
            and of the feed-forward.
        activation, widening: of the gated feed-forward, and how many times wider than the block it is.
        is_framed: a group norm and a linear layer before a transformer's blocks, another after them, and a way around
            them all (Rombach et al. 2022, sec. 3.3).
    """

    groups: int = 32
    has_scale: bool = True
    context_width: int = 256
    norm: str = "rms"
    norm_eps: float = 1e-6
    has_qk_norm: bool = True
    has_bias: bool = False
    activation: str = "silu"
    widening: int = 2
    is_framed: bool = False


class ResidualBlock(nn.Module):
    """Two convolutions, and between them the noise level."""

    def __init__(self, source: int, width: int, time_width: int, switches: BlockSwitches) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(switches.groups, source)
        self.conv1 = nn.Conv2d(source, width, 3, padding=1)
        self.time = Linear(time_width, 2 * width if switches.has_scale else width)
        self.norm2 = nn.GroupNorm(switches.groups, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.skip = nn.Conv2d(source, width, 1) if source != width else nn.Identity()
        self.has_scale = switches.has_scale
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = convolved(self.conv1, activated("silu", self.norm1(x)))
        told = self.time(time)[:, :, None, None]
        if self.has_scale:
            scale, shift = told.chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + told)
        h = convolved(self.conv2, activated("silu", h))
        kept: Tensor = self.skip(x)
        return kept + h


class TransformerBlock(nn.Module):
    """Places look at each other, then at the prompt, then think: (B, places, width) to the same."""

    def __init__(self, width: int, heads: int, switches: BlockSwitches) -> None:
        super().__init__()
        norm, eps, has_bias = NORMS[switches.norm], switches.norm_eps, switches.has_bias
        self.self_norm = norm(width, eps)
        self.self_attention = Attention(
            width, heads, has_qk_norm=switches.has_qk_norm, norm_eps=eps, has_output_bias=has_bias
        )
        if switches.context_width:
            self.cross_norm = norm(width, eps)
            self.cross_attention = Attention(
                width,
                heads,
                context_width=switches.context_width,
                has_qk_norm=switches.has_qk_norm,
                norm_eps=eps,
                has_output_bias=has_bias,
            )
            nn.init.zeros_(self.cross_attention.output.weight)  # type: ignore[arg-type]
        self.has_context = bool(switches.context_width)
        self.feedforward_norm = norm(width, eps)
        self.feedforward = FeedForward(
            width, switches.widening * width, activation=switches.activation, has_bias=has_bias
        )
        nn.init.zeros_(self.self_attention.output.weight)  # type: ignore[arg-type]
        nn.init.zeros_(self.feedforward.down.weight)

    def forward(self, h: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        """mask: bool, broadcast to (B, 1, places, S), or None."""
        h, normed = branch(self.self_norm, h)
        h = self.self_attention(normed, plus=h)
        if self.has_context:
            h, normed = branch(self.cross_norm, h)
            h = self.cross_attention(normed, context=context, mask=mask, plus=h)
        h, normed = branch(self.feedforward_norm, h)
        thought: Tensor = self.feedforward(normed, plus=h)
        return thought


class FramedTransformer(nn.Module):
    """Several such blocks in a frame, as in Stable Diffusion: (B, width, H, W) to the same."""

    def __init__(self, width: int, heads: int, depth: int, switches: BlockSwitches) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(switches.groups, width, eps=1e-6)
        self.enter = Linear(width, width)
        self.blocks = nn.ModuleList(TransformerBlock(width, heads, switches) for _ in range(depth))
        self.leave = Linear(width, width)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        h: Tensor = self.enter(to_places(self.norm(x)))
        for block in self.blocks:
            h = block(h, context, mask)
        return to_picture(linear_plus(self.leave, h, to_places(x)), x)


class Stage(nn.Module):
    """A residual block, and the transformer after it where this size has one.

    Args:
        heads, depth: of the transformer; depth 0 is none.
    """

    def __init__(
        self, source: int, width: int, time_width: int, heads: int, depth: int, switches: BlockSwitches
    ) -> None:
        super().__init__()
        self.residual = ResidualBlock(source, width, time_width, switches)
        self.is_framed = switches.is_framed
        self.transformer: nn.Module | None = None
        if depth and switches.is_framed:
            self.transformer = FramedTransformer(width, heads, depth, switches)
        elif depth:
            self.transformer = TransformerBlock(width, heads, switches)

    def forward(self, x: Tensor, time: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        h: Tensor = self.residual(x, time)
        if self.transformer is None:
            return h
        if self.is_framed:
            looked: Tensor = self.transformer(h, context, mask)
            return looked
        return to_picture(self.transformer(to_places(h), context, mask), h)


def to_places(picture: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H W, C): a view of what lies channels last."""
    return picture.permute(0, 2, 3, 1).flatten(1, 2)


def to_picture(places: Tensor, like: Tensor) -> Tensor:
    """(B, H W, C) -> (B, C, H, W) of the height of `like`, channels last."""
    return places.unflatten(1, (like.shape[2], -1)).permute(0, 3, 1, 2)  # type: ignore[no-any-return]
