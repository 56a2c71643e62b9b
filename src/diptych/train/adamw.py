"""AdamW as torch has it, without what torch's optimizers do beside their steps that takes longer than these.

torch marks some methods of its optimizers as not to be compiled, and the first call of one imports torch's compiler
with all that it needs, also where nothing is compiled: a second or two of every start. Here the methods behind those
marks are called.
"""

from inspect import unwrap
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from diptych.core.weights import local


class Uncompiled(Optimizer):
    """An optimizer whose making imports no compiler."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        unwrap(Optimizer.add_param_group)(self, param_group)


class AdamW(Uncompiled, torch.optim.AdamW):
    """`torch.optim.AdamW` (Loshchilov & Hutter 2019); its steps import no compiler either."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        unwrap(torch.optim.AdamW.step)(self)

    def _init_group(self, group: dict[str, Any], *gathered: list[Tensor]) -> bool:
        """torch's list of what a step works on; of what lies over several processes it is what this one holds. Each
        number moves by itself, and torch takes seconds to work out how the results of such an operation lie."""
        is_complex = bool(super()._init_group(group, *gathered))  # type: ignore[no-untyped-call]
        for tensors in gathered:
            tensors[:] = [local(tensor) for tensor in tensors]
        return is_complex
