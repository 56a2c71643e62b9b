"""The border between networks and samplers: whatever a network predicts, a denoiser says what the clean picture is.

D(x, node, condition) -> estimate of x_0 (and the noise it implies). Samplers, guidance and evaluation see only this.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from diptych.core.spelling import unknown
from diptych.image.condition import Condition
from diptych.image.path import Node


def column(values: Sequence[float], like: Tensor) -> Tensor:
    """Numbers (B,) as (B, 1, 1, 1) float32 beside pictures."""
    return torch.tensor(values, dtype=torch.float32, device=like.device)[:, None, None, None]


# prediction -> (denoised, noise), given x = alpha x_0 + sigma noise
PREDICTIONS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    # Ho et al. 2020, eq. 15
    "noise": lambda x, output, alpha, sigma: (x - sigma * output) / alpha,
    "image": lambda x, output, alpha, sigma: output,
    # v = alpha noise - sigma x_0 (Salimans & Ho 2022, app. D)
    "v": lambda x, output, alpha, sigma: (alpha * x - sigma * output) / (alpha**2 + sigma**2),
}


class Denoiser:
    """A network with the meaning of its prediction.

    Args:
        network: (x, time, context, mask, pooled, numbers) -> prediction, as `UNet`.
        prediction: one of PREDICTIONS.
    """

    def __init__(self, network: nn.Module, prediction: str = "noise") -> None:
        if prediction not in PREDICTIONS:
            raise unknown("prediction", prediction, PREDICTIONS)
        self.network = network
        self.prediction = prediction

    def __call__(self, x: Tensor, nodes: Sequence[Node], condition: Condition) -> Tensor:
        """The estimate of the clean picture, float32.

        Args:
            x: noisy pictures (B, C, H, W), float32, picture i at nodes[i].
        """
        weight = next(self.network.parameters())
        log_snr = torch.tensor([node.log_snr for node in nodes], dtype=torch.float32, device=x.device)
        alpha, sigma = column([node.alpha for node in nodes], x), column([node.sigma for node in nodes], x)
        # A network sees pictures of about unit variance on every path.
        seen = x / (alpha**2 + sigma**2).sqrt()
        context = condition.context.to(weight.dtype)
        pooled = None if condition.pooled is None else condition.pooled.to(weight.dtype)
        told = context, condition.mask, pooled, condition.numbers
        output = self.network(seen.to(weight.dtype), log_snr, *told).float()
        return PREDICTIONS[self.prediction](x, output, alpha, sigma)
