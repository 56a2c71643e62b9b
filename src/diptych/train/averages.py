"""Averages of the weights over training: a running one, and one whose length is chosen when training is over."""

import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from diptych.core.files import atomic_directory, atomic_file
from diptych.core.weights import local, save_tensors

Tensors = dict[str, Tensor]
LENGTHS = (0.05, 0.10)  # of the two averages that snapshots hold, as shares of training (Karras et al. 2024, sec. 3.1)


class Average:
    """Exponential moving average of a model's weights, with a short memory at the start (as in TensorFlow's EMA)."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: value.detach().clone() for name, value in model.state_dict().items()}

    def update(self, model: nn.Module, step: int) -> None:
        _move(self.weights, model, min(self.decay, (1 + step) / (10 + step)))


class PowerAverages:
    """Two averages in which a step t counts as t^gamma, so that each spans a fixed share of the training so far.

    From snapshots of the two, any average between them and beyond can be put together afterwards (`synthesise`).
    """

    def __init__(self, model: nn.Module) -> None:
        self.weights = [{name: value.detach().clone() for name, value in model.state_dict().items()} for _ in LENGTHS]

    def update(self, model: nn.Module, step: int) -> None:
        """Karras et al. 2024, eq. 127: keep (1 - 1/t)^(gamma + 1) of what was."""
        for weights, length in zip(self.weights, LENGTHS, strict=True):
            _move(weights, model, (1 - 1 / (step + 1)) ** (gamma_of(length) + 1))

    def tensors(self) -> Tensors:
        return {f"{index}/{name}": value for index, part in enumerate(self.weights) for name, value in part.items()}


@torch.no_grad()
def _move(weights: Tensors, model: nn.Module, keep: float) -> None:
    now = model.state_dict()
    moving = [name for name, value in now.items() if value.is_floating_point()]
    # All at once, which a GPU is told in one piece; what is divided over processes is divided alike on both sides.
    old, new = ([local(tensors[name].detach()) for name in moving] for tensors in (weights, now))
    torch._foreach_lerp_(old, new, 1 - keep)
    for name in now.keys() - set(moving):
        weights[name].copy_(now[name])


def gamma_of(length: float) -> float:
    """The exponent of the average whose standard deviation is `length` of the training (Karras et al. 2024, eq. 126).

    It is the largest root of (gamma + 1) / ((gamma + 2)^2 (gamma + 3)) = length^2.
    """
    if not 0 < length <= 0.25:
        raise ValueError(f"the length of an average must be above 0 and at most 0.25 of the training, not {length}")
    inverse = length**-2
    roots = np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse])
    return float(roots.real.max())


def snapshot_path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}.safetensors"


def save_snapshot(path: Path, tensors: Tensors, step: int) -> None:
    """Both averages in float16, which keeps them exact enough to put others together (Karras et al. 2024, app. C)."""
    half = {name: value.half() if value.dtype == torch.float32 else value for name, value in tensors.items()}
    with atomic_file(path) as temporary:
        save_tensors({name: value.contiguous().cpu() for name, value in half.items()}, temporary, {"step": str(step)})


def synthesise(folder: Path, length: float) -> Tensors:
    """The weights averaged over `length` of the training, from the snapshots in `folder`.

    The weighted sum of all snapshots whose profile over time is nearest to the wanted one, in least squares (Karras et
    al. 2024, sec. 3.2 and alg. 3).

    Returns:
        Name -> tensor, float32.

    Raises:
        ValueError: for an impossible length, or a folder without snapshots.
    """
    wanted = gamma_of(length)
    paths = sorted(folder.glob("step-*.safetensors"))
    if not paths:
        raise ValueError(f"'{folder}' holds no snapshots; run.snapshot_every makes them while a run trains")
    steps = np.array([int(path.stem.removeprefix("step-")) for path in paths], dtype=np.float64)
    times = np.repeat(steps, len(LENGTHS))
    gammas = np.tile([gamma_of(own) for own in LENGTHS], len(paths))
    last = steps[-1]
    overlaps = _overlap(times[:, None], gammas[:, None], times[None], gammas[None])
    target = _overlap(times, gammas, np.full_like(times, last), np.full_like(times, wanted))
    weights = np.linalg.lstsq(overlaps, target, rcond=None)[0]
    total: Tensors = {}
    for place, path in enumerate(paths):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - a safe_open is not a dict
                index, _, name = key.partition("/")
                tensor = file.get_tensor(key)
                if not tensor.is_floating_point():
                    total[name] = tensor
                    continue
                share = weights[place * len(LENGTHS) + int(index)]
                total[name] = total.get(name, torch.zeros(tensor.shape, dtype=torch.float32)) + share * tensor.float()
    return total


def average_model(run: Path, length: float, out: Path) -> None:
    """The finished model of a run with the weights averaged over `length` of its training, as a checkpoint at `out`.

    Raises:
        ValueError: as `synthesise`, or a run without a finished model.
    """
    model = run / "model"
    if not model.is_dir():
        raise ValueError(f"'{run}' has no finished model")
    averaged = synthesise(run / "snapshots", length)
    with atomic_directory(out) as temporary:
        shutil.copytree(model, temporary, dirs_exist_ok=True)
        for file in temporary.glob("*.safetensors"):
            tensors = load_file(file)
            kept = {name: averaged[name].to(value.dtype) for name, value in tensors.items() if name in averaged}
            save_tensors(tensors | {name: value.contiguous() for name, value in kept.items()}, file)
        with (temporary / "README.md").open("a", encoding="utf-8") as card:
            card.write(
                f"\n## Another average\n\nThe weights here are averaged over {length:g} of the training (Karras et al. "
                "2024), put together when it was over; the figures above are those of the run's own average.\n"
            )


def _overlap(t1: np.ndarray, g1: np.ndarray, t2: np.ndarray, g2: np.ndarray) -> np.ndarray:
    """The inner product over time of two power profiles that end at t1 and t2 (Karras et al. 2024, eq. 145)."""
    ratio = np.minimum(t1, t2) / np.maximum(t1, t2)
    power = np.where(t1 < t2, g2, g1)
    shared: np.ndarray = (g1 + 1) * (g2 + 1) * ratio**power / ((g1 + g2 + 1) * np.maximum(t1, t2))
    return shared
