"""Our samplers beside k-diffusion's: the largest difference of what they end with, from the same noise.

    git clone https://github.com/crowsonkb/k-diffusion ../k-diffusion
    python benchmarks/samplers.py ../k-diffusion

Only `k_diffusion/sampling.py` is imported, and of what it imports only what its samplers need; the rest are stand-ins.
Both sides see the exact denoiser of two Gaussians, in float64, and random samplers are given the same draws. Ours runs
on two paths, k-diffusion's own (alpha = 1) and that of latent diffusion, on which the noise ratios are the same.
"""

import argparse
import importlib.util
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diptych.image.moves import Midway, Visit
from diptych.image.nodes import nodes_named
from diptych.image.path import Node, path_named
from diptych.image.samplers import VISITS, sampler_named

SHAPE = (4, 4, 8, 8)
# ours, the function of k-diffusion, what it is told besides
PAIRS: list[tuple[str, str, dict[str, Any]]] = [
    ("euler", "euler", {}),
    ("euler-ancestral", "euler_ancestral", {}),
    ("euler-ancestral:eta=0.5", "euler_ancestral", {"eta": 0.5}),
    ("heun", "heun", {}),
    ("dpm2", "dpm_2", {}),
    ("dpm2-ancestral", "dpm_2_ancestral", {}),
    ("dpm2-ancestral:eta=0.5", "dpm_2_ancestral", {"eta": 0.5}),
    ("lms", "lms", {}),
    ("dpm++-2s-ancestral", "dpmpp_2s_ancestral", {}),
    ("dpm++-2s-ancestral:eta=0.5", "dpmpp_2s_ancestral", {"eta": 0.5}),
    ("dpm++-sde", "dpmpp_sde", {}),
    ("dpm++-sde:eta=0.5", "dpmpp_sde", {"eta": 0.5}),
    ("dpm++-2m", "dpmpp_2m", {}),
    ("dpm++-2m-sde", "dpmpp_2m_sde", {}),
    ("dpm++-2m-sde:kind=heun", "dpmpp_2m_sde", {"solver_type": "heun"}),
    ("dpm++-2m-sde:eta=0.5", "dpmpp_2m_sde", {"eta": 0.5}),
    ("dpm++-3m-sde", "dpmpp_3m_sde", {}),
    ("dpm++-3m-sde:eta=0.5", "dpmpp_3m_sde", {"eta": 0.5}),
]


def sampling_of(clone: Path) -> Any:
    """k-diffusion's samplers, with stand-ins for the packages that only its other parts need."""
    for name, parts in (("torchdiffeq", ("odeint",)), ("torchsde", ())):
        stand_in = types.ModuleType(name)
        for part in parts:
            setattr(stand_in, part, None)
        sys.modules.setdefault(name, stand_in)
    package = types.ModuleType("k_diffusion")
    package.__path__ = [str(clone / "k_diffusion")]
    utils = types.ModuleType("k_diffusion.utils")
    utils.append_dims = lambda x, count: x[(...,) + (None,) * (count - x.ndim)]  # type: ignore[attr-defined]
    package.utils = utils  # type: ignore[attr-defined]
    sys.modules |= {"k_diffusion": package, "k_diffusion.utils": utils}
    spec = importlib.util.spec_from_file_location("k_diffusion.sampling", clone / "k_diffusion" / "sampling.py")
    if spec is None or spec.loader is None or not (clone / "k_diffusion" / "sampling.py").is_file():
        raise SystemExit(f"samplers: '{clone}' is no clone of k-diffusion")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def two_modes(x: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
    """E[x_0 | x] for x_0 from N(-0.8, 0.3^2) or N(1, 0.3^2), each as often."""
    variance = (alpha * 0.3) ** 2 + sigma**2
    right = torch.sigmoid((alpha * x * 1.8 - alpha**2 * 0.18) / variance)
    return (sigma**2 * (-0.8 + 1.8 * right) + alpha * 0.09 * x) / variance


def noise_sampler(
    route: Sequence[Node], draws: Sequence[Tensor], *, halves: bool
) -> Callable[[Tensor, Tensor], Tensor]:
    """The draw of each step as k-diffusion asks for it: by the noise levels that it lies between. Where a step has a
    half that is drawn, the whole's begins with it, as on the Brownian path that k-diffusion samples."""

    def draw(high: Tensor, low: Tensor) -> Tensor:
        here, there = float(high), float(low)
        near = [k for k, node in enumerate(route[1:]) if abs(node.noise_ratio - there) <= 1e-9 * there]
        call = near[-1]
        middle = route[call]
        if not (halves and isinstance(middle, Midway)):
            return draws[call]
        share = (here - middle.noise_ratio) / (here - there)
        return share**0.5 * draws[call - 1] + (1 - share) ** 0.5 * draws[call]

    return draw


def ours(name: str, path_name: str, ratios: Sequence[float], start: Tensor, draws: Sequence[Tensor]) -> Tensor:
    path, sampler = path_named(path_name), sampler_named(name)
    route = sampler.route(path, [path.at_ratio(ratio) for ratio in ratios])
    x, visits = start * route[0].alpha, list[Visit]()
    for index, here in enumerate(route[:-1]):
        visits = [*visits[1 - VISITS :], Visit(here, x, two_modes(x, here.alpha, here.sigma))]
        x = sampler.step(visits, route[index + 1 :], draws[index])
    return x


def theirs(sampling: Any, name: str, told: dict[str, Any], ours: str, ratios: Sequence[float], start: Tensor,
           draws: Sequence[Tensor]) -> Tensor:  # fmt: skip
    path, sampler = path_named("variance-exploding"), sampler_named(ours)
    route = sampler.route(path, [path.at_ratio(ratio) for ratio in ratios])
    if sampler.is_random:
        told = told | {"noise_sampler": noise_sampler(route, draws, halves=sampler.looks == "in-drawn")}

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        return two_modes(x, 1.0, sigma[:, None, None, None])

    sigmas = torch.tensor(ratios, dtype=torch.float64)
    found: Tensor = getattr(sampling, f"sample_{name}")(model, start, sigmas, disable=True, **told)
    return found


def differences(sampling: Any, steps: int, rule: str) -> list[tuple[str, str, float, float]]:
    """A row a pair: ours, theirs, and the largest difference on each of the two paths."""
    path = path_named("ddpm-scaled-linear")
    ratios = [node.noise_ratio for node in nodes_named(rule)(path, steps)]
    random = torch.Generator().manual_seed(0)
    draws = list(torch.randn(2 * steps + 1, *SHAPE, generator=random, dtype=torch.float64))
    start = ratios[0] * draws.pop()
    rows = []
    for name, other, told in PAIRS:
        wanted = theirs(sampling, other, told, name, ratios, start, draws)
        found = [ours(name, path, ratios, start, draws) for path in ("variance-exploding", "ddpm-scaled-linear")]
        rows.append((name, f"sample_{other}", *(float((end - wanted).abs().max()) for end in found)))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clone", type=Path, help="a clone of k-diffusion")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--nodes", default="karras")
    arguments = parser.parse_args()
    sampling = sampling_of(arguments.clone)
    print(f"{arguments.steps} steps, nodes {arguments.nodes}; largest difference of the ends")
    print(f"{'ours':<28}{'k-diffusion':<28}{'alpha = 1':>12}{'ddpm':>12}")
    for name, other, plain, ddpm in differences(sampling, arguments.steps, arguments.nodes):
        print(f"{name:<28}{other:<28}{plain:>12.1e}{ddpm:>12.1e}")


if __name__ == "__main__":
    main()
