"""What a picture costs: the bundled painter, or another, from a cold start and warm, in seconds and in memory.

    python benchmarks/brush.py
    python benchmarks/brush.py --model DIR --steps 10

Each part runs in a process of its own on `--threads` threads. `cold` is the time from the start of the process to the
first preview. `warm` is a picture of 30 guided steps after another one, and eight of them in one batch, the median of
`--times`.

Memory, which Linux alone tells, is the most that the whole process had, from its start over opening the model to the
finished picture, counted in two ways: over what importing the libraries takes, beside the weights and the first guided
call of the network, which brings code of the libraries into memory; and over the same run of the same model with random
weights and a quarter of its width, beside what its weights and a later call, which takes room for numbers alone, are
over those of the narrow one. That is made of a checkpoint of the house; for another the second count is left out.
"""

import argparse
import ctypes
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

PROMPT = "a cat wearing sunglasses on a beach at sunset"
NARROW = 4
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


def mebibytes(name: str) -> float:
    """VmRSS, what is in memory now, or VmHWM, the most that was since it was forgotten."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) / 1024


def libraries(model: str, steps: int, times: int) -> None:
    for name in ("numpy", "PIL.Image", "safetensors.torch", "tokenizers", "torch"):
        import_module(name)
    print(mebibytes("VmRSS"))


def peak(model: str, steps: int, times: int) -> None:
    import diptych

    painter: Any = diptych.load(model)
    painter.generate(PROMPT, steps=steps, seed=1).result()
    print(mebibytes("VmHWM"))


def needs(model: str, steps: int, times: int) -> None:
    """Of the weights, the first guided call of the network and a later one."""
    import torch

    import diptych

    painter: Any = diptych.load(model)
    parameters = [one for part in (*painter.parts.values(), painter.autoencoder) for one in part.parameters()]
    for parameter in parameters:
        parameter.sum()  # mapped weights come into memory when they are read
    with torch.inference_mode():
        told = painter.encode([PROMPT, ""]).told(painter.numbers((painter.height, painter.width), 5.0))
        x, nodes = torch.randn(2, *painter.latent_shape), [painter.path.node(0.5)] * 2
        print(sum(one.nbytes for one in parameters) / 2**20)
        for _ in range(2):
            ctypes.CDLL(None).malloc_trim(0)  # what is free already would be taken for nothing
            inside = mebibytes("VmRSS")
            FORGET.write_text("5")
            painter.denoiser(x, nodes, told)
            print(mebibytes("VmHWM") - inside)


def narrowed(model: str, steps: int, times: int, out: str) -> None:
    """Write the same model with widths and heads a quarter as large, and random weights."""
    import torch

    from diptych.core.tokenizer import Tokenizer
    from diptych.image.autoencoder import Autoencoder, AutoencoderConfig
    from diptych.image.encoders import EncoderConfig, TextEncoder
    from diptych.image.model import ImageModel
    from diptych.image.networks import NETWORKS, make_network
    from diptych.image.prompts import OwnPrompter
    from diptych.models import find

    folder, config = find(model)
    sizes = {part: config[part] for part in ("encoder", "autoencoder", *NETWORKS) if part in config}
    for values in sizes.values():
        for name in {"width", "widths", "context_width", "head_dim"} & {*values}:
            whole = values[name]
            values[name] = [one // NARROW for one in whole] if isinstance(whole, list) else whole // NARROW
    (kind,) = NETWORKS.keys() & sizes.keys()
    torch.manual_seed(0)
    encoder = TextEncoder(EncoderConfig.from_dict(sizes["encoder"]))
    ImageModel(
        "narrow",
        prompter=OwnPrompter(encoder, Tokenizer.load(folder / "tokenizer.json")),
        network=make_network(kind, sizes[kind]),
        autoencoder=Autoencoder(AutoencoderConfig.from_dict(sizes["autoencoder"])),
        path=config["path"],
        prediction=config["prediction"],
        size=config["size"],
    ).save(out)


def memory(options: argparse.Namespace) -> None:
    imported, most = (float(run(part, options)) for part in ("libraries", "peak"))
    weights, first, later = map(float, run("needs", options).split())
    print(f"the libraries as they are imported: {imported:.0f} MiB; the peak of a run: {most:.0f} MiB")
    print(f"weights {weights:.0f} MiB; a guided call {first:.0f} MiB the first time, {later:.0f} MiB later")
    over = most - imported
    print(f"over the libraries {over:.0f} MiB, {over / (weights + first):.2f} times weights and a first call")
    with TemporaryDirectory() as folder:
        narrow = str(Path(folder) / "narrow")
        try:
            run("narrowed", options, options.model, narrow)
        except subprocess.CalledProcessError as error:
            print(f"no narrow model: {error.stderr.strip().splitlines()[-1]}")
            return
        least = float(run("peak", options, narrow))
        its_weights, _, its_later = map(float, run("needs", options, narrow).split())
    over, more = most - least, weights + later - its_weights - its_later
    print(
        f"the peak of a run of the narrow model: {least:.0f} MiB; its weights {its_weights:.0f}, a call {its_later:.0f}"
    )
    print(f"over it {over:.0f} MiB, {over / more:.2f} times what weights and a later call are over its own")


def run(part: str, options: argparse.Namespace, model: str | None = None, *more: str) -> str:
    command = [sys.executable, __file__, part, model or options.model, str(options.steps), str(options.times), *more]
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
        memory(options)


if __name__ == "__main__":
    parts = {one.__name__: one for one in (cold, warm, libraries, peak, needs, narrowed)}
    if len(sys.argv) > 1 and sys.argv[1] in parts:
        parts[sys.argv[1]](sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), *sys.argv[5:])
    else:
        main()
