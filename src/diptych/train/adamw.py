"""AdamW as torch has it, and what any of torch's optimizers needs so that a training starts a second or two sooner.

torch marks some methods of its optimizers as not to be compiled, and the first call of one imports torch's compiler
with all that it needs, also where nothing is compiled. Here the methods behind those marks are called.
"""

from inspect import unwrap
from typing import Any

import torch
from torch.optim import Optimizer


class Uncompiled(Optimizer):
    """An optimizer whose making imports no compiler."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        unwrap(Optimizer.add_param_group)(self, param_group)


class AdamW(Uncompiled, torch.optim.AdamW):
    """`torch.optim.AdamW` (Loshchilov & Hutter 2019); its steps import no compiler either."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        unwrap(torch.optim.AdamW.step)(self)
