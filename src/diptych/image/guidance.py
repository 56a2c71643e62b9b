"""Classifier-free guidance: away from what the picture would be without the prompt (Ho & Salimans 2022, eq. 6).

Guidance is a function of denoised estimates. In noise, in v or in x_0 it is the same line, since these differ by terms
that do not depend on the condition.
"""

from torch import Tensor


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """unconditional + scale (conditional - unconditional); scale 1 is the conditional estimate, with nothing lost.

    Args:
        conditional, unconditional: estimates of x_0, (B, C, H, W), float32. "Unconditional" is what the negative
            prompt gives where there is one.
    """
    return conditional if scale == 1 else unconditional + scale * (conditional - unconditional)


def needs_unconditional(scale: float) -> bool:
    """Scale 1 is no guidance: the second estimate would be multiplied by zero, so it is never made."""
    return scale != 1
