"""Painting beside diffusers: seconds of a guided evaluation of Stable Diffusion 1.5's U-Net, bfloat16, 64 x 64 latents.

    python benchmarks/painting.py --models models
    python benchmarks/painting.py --models models --python ../peers/bin/python

The U-Net has random weights and is written to `--models` by diffusers where it is not there; both sides read that
folder and are called with the same latent (2 rows: with and without the prompt), step and prompt. diffusers runs in its
default memory format. `--python` is the interpreter of an environment with diffusers, this one unless said. A run is a
process of its own on `--threads` threads that calls the network once to warm up and `--calls` times; the sides take
turns, and a figure is the median of `--times` runs. The most memory that it had until its first call was done is what
importing took, the weights, and the rest: the call and what opening left. What each predicts is compared with the
other's, and with what diffusers predicts in float32 from the same weights.
"""

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

ROWS, CHANNELS, SIDE, WORDS, WIDTH, STEP = 2, 4, 64, 77, 768, 500.0
SHAPE = {"cross_attention_dim": WIDTH, "attention_head_dim": 8}  # the rest is diffusers' default


def write(folder: str) -> None:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    UNet2DConditionModel(**SHAPE).save_pretrained(folder)


def inputs(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    x = torch.randn(ROWS, CHANNELS, SIDE, SIDE, generator=random)
    context = torch.randn(ROWS, WORDS, WIDTH, generator=random)
    return x.bfloat16().to(dtype), torch.full((ROWS,), STEP), context.bfloat16().to(dtype)


Side = tuple[torch.nn.Module, Callable[[], torch.Tensor]]  # a network, and a call of it


def diffusers(folder: str, dtype: torch.dtype = torch.bfloat16) -> Side:
    from diffusers import UNet2DConditionModel

    model: Any = UNet2DConditionModel.from_pretrained(folder, torch_dtype=dtype).eval()
    told = inputs(dtype)
    return model, lambda: model(*told)[0]


def exactly(folder: str) -> Side:
    return diffusers(folder, torch.float32)


def diptych(folder: str) -> Side:
    from diptych.core.mapped import recast
    from diptych.interop.denoisers import open_denoiser

    model: Any = recast(open_denoiser(folder), channels_last=True)  # as open_pipeline does
    x, step, context = inputs(torch.bfloat16)
    return model, lambda: model(x.contiguous(memory_format=torch.channels_last), step, context, None)


SIDES = {one.__name__: one for one in (diffusers, diptych, exactly)}
LIBRARIES = dict.fromkeys(SIDES, "diffusers.models.unets.unet_2d_condition")
LIBRARIES["diptych"] = "diptych.interop.denoisers"


def most_memory() -> float:
    """That this process has had so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def one_side(name: str, folder: str, out: str, calls: int) -> None:
    """In a process of its own: keeps what was predicted, prints seconds a call."""
    import_module(LIBRARIES[name])
    imported = most_memory()
    network, call = SIDES[name](folder)
    weights = sum(parameter.nbytes for parameter in network.parameters()) / 2**30
    times = []
    with torch.inference_mode():
        predicted = call()
        peak = most_memory()
        for _ in range(calls):
            started = time.perf_counter()
            call()
            times.append(time.perf_counter() - started)
    (Path(out) / name).write_bytes(predicted.float().contiguous().numpy().tobytes())
    rest = peak - imported - weights
    print(f"peak memory {peak:.2f} GiB: libraries {imported:.2f}, weights {weights:.2f}, a call {rest:.2f};")
    print(statistics.median(times) if times else 0.0)


def run(python: str, arguments: list[str], threads: int) -> float:
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    command = [python, __file__, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}: {done.stderr.strip()[-2000:]}")
    *remarks, figure = done.stdout.splitlines() or ["0"]
    print(f"  {arguments[1]}:", *remarks, f"{float(figure):.3f} s", flush=True)
    return float(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--python", default=sys.executable, help="of the environment with diffusers")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--times", type=int, default=3, help="runs of each side")
    parser.add_argument("--calls", type=int, default=3, help="calls of a run that are timed")
    parser.add_argument("--exact", action="store_true", help="also compare with float32, which takes a minute more")
    options = parser.parse_args()
    folder = str(options.models / "sd15-unet")
    if not Path(folder).is_dir():
        subprocess.run([options.python, __file__, "--write", folder], check=True)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {options.threads} threads")
    pythons = {"diffusers": options.python, "diptych": sys.executable}
    with TemporaryDirectory() as out:
        found: dict[str, list[float]] = {name: [] for name in pythons}
        for name in [*pythons] * options.times:
            arguments = ["--side", name, folder, out, str(options.calls)]
            found[name].append(run(pythons[name], arguments, options.threads))
        if options.exact:
            run(options.python, ["--side", "exactly", folder, out, "0"], options.threads)
        made = {
            name: torch.frombuffer(bytearray((Path(out) / name).read_bytes()), dtype=torch.float32)
            for name in (*pythons, *(["exactly"] if options.exact else []))
        }
    medians = {name: statistics.median(times) for name, times in found.items()}
    for name, seconds in medians.items():
        print(f"{name}: {seconds:.3f} s an evaluation ({min(found[name]):.3f} to {max(found[name]):.3f})")
    print(f"diptych is {medians['diffusers'] / medians['diptych']:.2f} times as fast")
    spread = made["diffusers"].std()
    pairs = [("diptych", "diffusers"), *((name, "exactly") for name in pythons if options.exact)]
    for one, other in pairs:
        apart = made[one] - made[other]
        print(
            f"{one} and {other} in {'float32' if other == 'exactly' else 'bfloat16'}: at most {apart.abs().max():.4f} "
            f"apart, {apart.square().mean().sqrt() / spread:.2%} of the prediction's deviation in the mean square"
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--write"]:
        write(sys.argv[2])
    elif sys.argv[1:2] == ["--side"]:
        one_side(sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5]))
    else:
        main()
