"""What a picture costs: the bundled painter, or another, from a cold start and warm, in seconds and in memory.

    python benchmarks/brush.py
    python benchmarks/brush.py --model DIR --steps 10

Each part runs in a process of its own on `--threads` threads. `cold` is the time from the start of the process to the
first preview. `warm` is a picture of 30 guided steps after another one, and eight of them in one batch, the median of
`--times`. `memory` is what a run takes at its peak beyond what Python and the libraries take, over the weights and what
one guided call of the network needs; Linux alone tells it.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PROMPT = "a cat wearing sunglasses on a beach at sunset"
STATUS, FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def cold(model: str, steps: int, times: int) -> None:
    began = time.perf_counter()
    import diptych

    painter: Any = diptych.load(model)
    next(iter(painter.generate(PROMPT, steps=steps, seed=1))).preview()
    print(time.perf_counter() - began)


def warm(model: str, steps: int, times: int) -> None:
    import diptych

    painter: Any = diptych.load(model)

    def seconds(count: int) -> float:
        began = time.perf_counter()
        painter.generate(PROMPT, steps=steps, seed=1, count=count).result()
        return time.perf_counter() - began

    found: dict[int, list[float]] = {1: [], 8: []}
    for count in (1, 8):
        seconds(count)
        found[count] = [seconds(count) for _ in range(times)]
    one, eight = (statistics.median(values) for values in found.values())
    print(f"a picture of {steps} guided steps: {one:.2f} s ({min(found[1]):.2f} to {max(found[1]):.2f})")
    print(f"eight in one batch: {eight:.2f} s, {eight / one:.2f} times as long")


def megabytes(name: str) -> float:
    """VmRSS, what is in memory now, or VmHWM, the most that was since it was forgotten."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) / 1024


def memory(model: str, steps: int, times: int) -> None:
    import torch

    import diptych
    from diptych.image.model import ImageModel

    before = megabytes("VmRSS")
    painter: Any = diptych.load(model)
    assert isinstance(painter, ImageModel)
    parameters = [one for part in (*painter.parts.values(), painter.autoencoder) for one in part.parameters()]
    weights = sum(one.nbytes for one in parameters) / 2**20
    for parameter in parameters:
        parameter.sum()  # mapped weights come into memory when they are read
    size = (painter.height, painter.width)
    with torch.inference_mode():
        told = painter.encode([PROMPT, ""]).told(painter.numbers(size, 5.0))
        inside = megabytes("VmRSS")
        FORGET.write_text("5")
        painter.denoiser(torch.randn(2, *painter.latent_shape), [painter.path.node(0.5)] * 2, told)
        call = megabytes("VmHWM") - inside
    painter.generate(PROMPT, steps=steps, seed=1).result()
    whole = megabytes("VmHWM") - before
    print(f"weights {weights:.0f} MiB, a guided call {call:.0f} MiB more; a run {whole:.0f} MiB at its peak")
    print(f"{whole / (weights + call):.2f} times weights and one call")


def run(part: str, options: argparse.Namespace) -> str:
    command = [sys.executable, __file__, part, options.model, str(options.steps), str(options.times)]
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="brush")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, {options.threads} threads")
    starts = []
    for _ in range(options.times):
        began = time.perf_counter()
        run("cold", options)
        starts.append(time.perf_counter() - began)
    print(f"cold start to the first preview, whole process: {statistics.median(starts):.2f} s")
    print(run("warm", options))
    if STATUS.exists():
        print(run("memory", options))


if __name__ == "__main__":
    parts = {one.__name__: one for one in (cold, warm, memory)}
    if len(sys.argv) > 1 and sys.argv[1] in parts:
        parts[sys.argv[1]](sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        main()
