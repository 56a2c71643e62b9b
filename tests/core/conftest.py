"""What several kinds of attention are held against."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor


@pytest.fixture
def held_against_float64() -> Callable[..., None]:
    """held_against_float64(ATTEND, INPUTS, PULL, MASK, IS_CAUSAL, norm=, most=): values and gradients in bfloat16 are
    those in float64, but for so much of their norm, and of the largest of them."""

    def hold(
        attend: Callable[..., Tensor],
        inputs: list[Tensor],
        pull: Tensor,
        mask: Tensor | None,
        is_causal: bool,
        *,
        norm: float,
        most: float,
    ) -> None:
        lower = [x.clone().requires_grad_() for x in inputs]
        attended = attend(*lower, mask, is_causal)
        attended.backward(pull)
        exact = [x.double().requires_grad_() for x in inputs]
        is_alone = is_causal and mask is None
        expected = F.scaled_dot_product_attention(*exact, attn_mask=mask, is_causal=is_alone, enable_gqa=True)
        expected.backward(pull.double())
        assert attended.dtype == torch.bfloat16
        for found, wanted in [(attended, expected), *((x.grad, y.grad) for x, y in zip(lower, exact, strict=True))]:
            assert found is not None
            assert wanted is not None
            assert (found - wanted).norm() < norm * wanted.norm()  # bfloat16 has 8 bits
            assert (found - wanted).abs().max() < most * wanted.abs().max()

    return hold
