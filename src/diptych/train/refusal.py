"""Steps that are refused: a loss or a gradient that is not finite must not reach the weights."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from diptych.core.files import atomic_file
from diptych.core.weights import save_tensors

IN_A_ROW = 3  # refused steps that stop a run


def first_not_finite(model: nn.Module, compute_loss: Callable[[], Tensor]) -> str:
    """The name of the first tensor that is not finite when the loss is computed again: a weight, what a module gives
    out, the loss, or else, going backward, a gradient. "" where all are finite this time."""
    for name, parameter in model.named_parameters():
        if not bool(parameter.detach().isfinite().all()):
            return f"weight {name}"
    found: list[str] = []

    def look(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            tensors = output if isinstance(output, tuple | list) else [output]
            if not found and any(isinstance(t, Tensor) and not bool(t.detach().isfinite().all()) for t in tensors):
                found.append(f"output of {name or type(module).__name__}")

        return hook

    hooks = [module.register_forward_hook(look(name)) for name, module in model.named_modules()]
    try:
        loss = compute_loss()
        if found:
            return found[0]
        if not bool(loss.detach().isfinite().all()):
            return "the loss"
        loss.backward()
    finally:
        for hook in hooks:
            hook.remove()
    sick = [n for n, p in model.named_parameters() if p.grad is not None and not bool(p.grad.isfinite().all())]
    return f"gradient of {sick[-1]}" if sick else ""  # the last in the model is the first that is worked out


def save_batches(path: Path, parts: Sequence[tuple[Tensor, ...]]) -> None:
    """The batches of a step as named tensors, to look at: "<part>/<field>"."""
    tensors = {
        f"{index}/{name}": value.detach().cpu().contiguous()
        for index, part in enumerate(parts)
        for name, value in zip(getattr(part, "_fields", map(str, range(len(part)))), part, strict=True)
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        save_tensors(tensors, temporary)
