"""The contrastive objective: a picture and its caption lie near each other, the other pairs of the batch far apart.

Both losses see cosine similarities of two batches of unit vectors, times a learned scale (the inverse temperature).
What is far apart is decided by the whole batch, so neither loss is a mean over parts of one.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

LARGEST_SCALE = 100.0  # Radford et al. 2021, section 2.5


def softmax_loss(logits: Tensor, positives: Tensor) -> Tensor:
    """Symmetric InfoNCE (Radford et al. 2021, figure 3) with one or several right answers a row.

    Those of a row share its target evenly, as in Khosla et al. 2020, eq. 2; with one a row, these are two cross
    entropies with the diagonal as the target.

    Args:
        logits: (B, B), float32, picture i against caption j, scaled.
        positives: (B, B), bool, True where caption j is true of picture i; at least one in each row and column.
    """
    from_pictures = F.cross_entropy(logits, positives / positives.sum(1, keepdim=True))
    from_captions = F.cross_entropy(logits.T, positives.T / positives.T.sum(1, keepdim=True))
    return (from_pictures + from_captions) / 2


def sigmoid_loss(logits: Tensor, positives: Tensor) -> Tensor:
    """Each pair by itself a question of yes or no, summed over a picture's pairs (Zhai et al. 2023, eq. 1).

    Args: as `softmax_loss`; the learned bias is in the logits.
    """
    signs = torch.where(positives, 1.0, -1.0)
    return -F.logsigmoid(signs * logits).sum() / len(logits)


# name -> loss, scale to begin with, bias to begin with
LOSSES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], float, float]] = {
    "softmax": (softmax_loss, 1 / 0.07, 0.0),  # Radford et al. 2021, section 2.5; a bias would cancel
    "sigmoid": (sigmoid_loss, 10.0, -10.0),  # Zhai et al. 2023, section 3.2: at first nearly every pair is none
}


def contrastive_loss(
    pictures: Tensor, captions: Tensor, log_scale: Tensor, bias: Tensor | None, positives: Tensor, *, loss: str
) -> Tensor:
    """The loss of a batch of pairs.

    Args:
        pictures, captions: (B, D), unit vectors, float32.
        log_scale: (), clamped at log 100; bias: () or none.
        positives: (B, B), bool, as `softmax_loss`; see `equal_captions`.
        loss: one of LOSSES.
    """
    with torch.autocast(pictures.device.type, enabled=False):  # a scale of 100 leaves no room for rounding
        logits = log_scale.clamp(max=math.log(LARGEST_SCALE)).exp() * pictures.float() @ captions.float().T
        return LOSSES[loss][0](logits if bias is None else logits + bias, positives)


def equal_captions(tokens: Tensor) -> Tensor:
    """Token ids (B, S) -> (B, B), True where two captions say the same: what is true of one picture is of the other."""
    return (tokens[:, None] == tokens[None]).all(-1)
