"""Dropout (Srivastava et al. 2014): while training, numbers are left out at random and the others grow to make up."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEPS = 256  # of the share that is left out on a CPU: one random byte decides


class Dropout(nn.Module):
    """Leaves out a share of the numbers of x; on a CPU the nearest 256th, at a third of the time of torch's, which
    draws a number for each."""

    def __init__(self, share: float) -> None:
        super().__init__()
        if not 0 <= share < 1:
            raise ValueError(f"dropout must be a number >= 0 and < 1, not {share}")
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.share:
            return x
        out = round(self.share * STEPS)
        if x.device.type != "cpu" or not 0 < out < STEPS or torch.compiler.is_compiling():
            return F.dropout(x, self.share)
        words = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
        is_kept = words.view(torch.uint8)[: x.numel()].view(x.shape) >= out
        return x * is_kept.to(x.dtype).mul_(STEPS / (STEPS - out))

    def extra_repr(self) -> str:
        return str(self.share)
