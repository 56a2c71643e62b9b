"""The border between networks and samplers: whatever a network predicts, a denoiser says what the clean picture is.

D(x, node, condition) -> estimate of x_0 (and the noise it implies). Samplers, guidance and evaluation see only this.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from diptych.core.graphs import Graphs
from diptych.core.precision import at_least_float32
from diptych.core.unchanged import Unchanged
from diptych.image.condition import Condition
from diptych.image.path import LARGEST_LOG_SNR, Node, Path
from diptych.image.prediction import Prediction, prediction_named


class Level(NamedTuple):
    """The noise levels of a batch: four numbers of each picture, (B,), float32."""

    times: Tensor
    alpha: Tensor
    sigma: Tensor
    log_snr: Tensor


def told_time(clock: str, log_snr: Tensor, sigma: Tensor, times: Tensor, steps: int) -> Tensor:
    """A noise level in the unit that a network's clock counts in (`clock.CLOCKS`); finite for pure noise, too.

    Args:
        log_snr, sigma, times: of each picture, (B,).
        steps: of the path.
    """
    if clock == "timestep":
        return steps * times - 1
    if clock == "flow":
        return 1000 * sigma
    finite = log_snr.clamp(-LARGEST_LOG_SNR, LARGEST_LOG_SNR)
    return -finite / 8 if clock == "edm" else finite


def output_of(
    network: nn.Module,
    prediction: Prediction,
    path: Path,
    x: Tensor,
    level: Level,
    condition: Condition,
    call: Callable[..., Tensor] | None = None,
) -> Tensor:
    """What a network says of noisy pictures: (B, C, H, W), at least float32.

    Args:
        network: (x, time, context, mask, pooled, numbers) -> prediction, as `UNet`. Its `clock` says in which unit it
            wants the noise level; one that has none takes log_snr.
        x: noisy pictures (B, C, H, W), float32, as the path has them.
        call: how the network is called; None is directly.
    """
    dtype = next(network.parameters()).dtype
    time = told_time(getattr(network, "clock", "log-snr"), level.log_snr, level.sigma, level.times, path.steps)
    seen = x / beside(prediction.size(level.alpha, level.sigma, path.kind))
    pooled = None if condition.pooled is None else condition.pooled.to(dtype)
    told = condition.context.to(dtype), condition.mask, pooled, condition.numbers
    return at_least_float32((call or network)(seen.to(dtype), time, *told))


class Denoiser:
    """A network with the meaning of its prediction.

    Args:
        network: see `output_of`.
        prediction: as `prediction_named` reads it.
        path: whose nodes it is asked at; of another shift of the same kind, they are fine, too.

    Raises:
        ValueError: a prediction that is not known, or that says nothing where the path begins.
    """

    def __init__(self, network: nn.Module, prediction: str, path: Path) -> None:
        self.network, self.path = network, path
        self.prediction = prediction_named(prediction)
        self.prediction.check(path)
        self._recorded: tuple[Graphs, Unchanged] | None = None  # from the first call on, when it is known where

    def __call__(self, x: Tensor, nodes: Sequence[Node], condition: Condition) -> Tensor:
        """The estimate of the clean picture, float32.

        Args:
            x: noisy pictures (B, C, H, W), float32, picture i at nodes[i].
        """
        values = [(node.time, node.alpha, node.sigma, node.log_snr) for node in nodes]
        level = Level(*torch.tensor(values, dtype=torch.float32, device=x.device).unbind(1))
        output = output_of(self.network, self.prediction, self.path, x, level, condition, self._call)
        return self.prediction.denoised(x, output.float(), beside(level.alpha), beside(level.sigma))

    def _call(self, *inputs: Tensor | None) -> Tensor:
        """The network, on a GPU as one launch, where nobody watches its layers and no gradient is wanted."""
        weight = next(self.network.parameters())
        if self._recorded is None:
            self._recorded = Graphs(weight.device), Unchanged(self.network)
        graphs, unchanged = self._recorded
        if not graphs.is_on or torch.is_grad_enabled() or not unchanged.is_so():
            answer: Tensor = self.network(*inputs)
            return answer
        found: Tensor = graphs.call(weight.data_ptr(), self.network, *inputs)  # one that was moved is another one
        return found.clone()


def beside(values: Tensor) -> Tensor:
    """(B,) as (B, 1, 1, 1)."""
    return values[:, None, None, None]
