"""Training beside its peers: time to a loss, tokens and pictures a second. Runs of both sides take turns.

    python benchmarks/training.py shakespeare --text input.txt --nanogpt ../nanoGPT
    python benchmarks/training.py low         --text input.txt
    python benchmarks/training.py gpt         --text input.txt --nanogpt ../nanoGPT
    python benchmarks/training.py llama       --text input.txt --python ../peers/bin/python
    python benchmarks/training.py unet        --python ../peers/bin/python
    python benchmarks/training.py ranks       --text input.txt
    python benchmarks/training.py share       --text input.txt

`--text` is tinyshakespeare's input.txt, `--nanogpt` a clone of github.com/karpathy/nanoGPT in which
`data/shakespeare_char/prepare.py` was run, `--python` an interpreter whose environment has transformers, diffusers and
accelerate beside the same torch. Every run is a process of its own; a figure is the median of `--times` runs a side.
On a machine with a GPU both sides run there; `--steps 400 --compile` then gives runs that last long enough, and both
sides with torch.compile, too.
"""

import argparse
import itertools
import json
import math
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

HERE = Path(__file__).parent
RECIPES = HERE / "recipes"
# The configuration of nanoGPT's README for a laptop without a GPU.
NANOGPT_ON_A_CPU = (
    "--device=cpu --compile=False --eval_iters=20 --log_interval=100 --block_size=64 --batch_size=12 --n_layer=4 "
    "--n_head=4 --n_embd=128 --max_iters=2000 --lr_decay_iters=2000 --dropout=0.0"
)
LLAMA = ("norm=rms", "activation=silu", "is_gated=true", "hidden=1024")
WARM = 5  # steps that are not counted
TURN = 5  # steps of a run between two of another


class Ours:
    """Runs of `diptych train` in a folder that is thrown away, each with a cache that has no more in it than what is
    compiled once a machine, or is empty."""

    def __init__(self, folder: Path, text: Path | None) -> None:
        self.folder, self.number = folder, 0
        if text is not None:
            line = json.dumps({"text": text.read_text(encoding="utf-8")})
            (folder / "shakespeare.jsonl").write_text(line + "\n", encoding="utf-8")

    def train(self, recipe: str, *changes: str, is_first: bool = False) -> Path:
        """The folder of a finished run; `is_first` says that it is to be as the first one on a machine."""
        run, command, environment = self._command(recipe, *changes, is_first=is_first)
        subprocess.run(command, check=True, cwd=self.folder, env=environment, stdout=subprocess.DEVNULL)
        return run

    def begin(self, recipe: str, *changes: str, processes: int, threads: int) -> "Paused":
        """A run of several processes, as torchrun would start them, that waits for its turn."""
        run, command, environment = self._command(recipe, *changes, "--threads", str(threads))
        with socket.socket() as free:
            free.bind(("localhost", 0))
            place = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1])}
        place |= {"WORLD_SIZE": str(processes), "OMP_NUM_THREADS": str(threads)}
        started = []
        for rank in range(processes):
            mine = environment | place | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            started.append(
                subprocess.Popen(
                    command, cwd=self.folder, env=mine, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
                )
            )
        return Paused(run, started)

    def _command(self, recipe: str, *arguments: str, is_first: bool = False) -> tuple[Path, list[str], dict[str, str]]:
        self.number += 1
        run, cache = self.folder / f"run-{self.number}", self.folder / f"cache-{self.number}"
        if not is_first:
            shutil.copytree(self.compiled(), cache)
        command = [sys.executable, "-m", "diptych", "train", str(RECIPES / recipe), *arguments, "--out", str(run)]
        return run, command, os.environ | {"DIPTYCH_CACHE": str(cache)}

    def compiled(self) -> Path:
        """A cache folder with what is compiled once a machine."""
        cache = self.folder / "cache-compiled"
        if not cache.is_dir():
            cache.mkdir()
            code = (
                "import torch; from diptych.core.machine_code import compile_beside; "
                "from diptych.core.together import libraries; "
                "compile_beside(libraries(torch.device('cpu'), torch.bfloat16, learns=True))"
            )
            environment = os.environ | {"DIPTYCH_CACHE": str(cache)}
            subprocess.run([sys.executable, "-c", code], check=True, env=environment)
        return cache

    def speed(self, *arguments: str) -> float:
        """Tokens a second of the whole loop, the first steps left out."""
        return pace(steps_of(self.train(*arguments))[WARM:])


class Paused:
    """A run whose processes are stopped but for its turns, so that several runs meet the same minutes."""

    def __init__(self, run: Path, processes: list[subprocess.Popen[bytes]]) -> None:
        self.run, self.processes = run, processes

    def turn(self, steps: int) -> float:
        """Tokens a second of so many steps that began and ended in this turn: not of the one that the last turn cut."""
        before = len(steps_of(self.run))
        self._signal(signal.SIGCONT)
        while len(made := steps_of(self.run)) < before + 1 + steps:
            if any(process.poll() is not None for process in self.processes):
                raise RuntimeError(f"a process of the run in {self.run} ended before its turns did")
            time.sleep(0.02)
        self._signal(signal.SIGSTOP)
        return pace(made[before : before + 1 + steps])

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def _signal(self, number: int) -> None:
        for process in self.processes:
            process.send_signal(number)


def metrics(run: Path) -> list[dict[str, Any]]:
    """Its lines so far, but for one that is still being written."""
    path = run / "metrics.jsonl"
    written = path.read_text().rpartition("\n")[0] if path.is_file() else ""
    return [json.loads(line) for line in written.splitlines()]


def steps_of(run: Path) -> list[dict[str, Any]]:
    return [line for line in metrics(run) if "loss" in line]


def pace(steps: list[dict[str, Any]]) -> float:
    """Tokens a second by the median of what lies between the ends of two steps, as of peers (`peers.rate`)."""
    seconds = [later["seconds"] - earlier["seconds"] for earlier, later in itertools.pairwise(steps)]
    return float(steps[-1]["tokens"] - steps[-2]["tokens"]) / statistics.median(seconds)


def validation_loss(line: dict[str, Any]) -> float:
    """In nats a character: the text is ASCII, so a byte is a character."""
    return float(line["validation/bits_per_byte/shakespeare"]) * math.log(2)


def peer(python: str, subject: str, *arguments: str) -> float:
    """Units a second of `peers.py SUBJECT`."""
    command = [python, str(HERE / "peers.py"), subject, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    *remarks, figure = done.stdout.splitlines()
    print(*remarks[-1:])
    return float(figure)


def compare(unit: str, times: int, sides: dict[str, Callable[[], float]]) -> dict[str, float]:
    """Runs of all sides in turn; the medians."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(1, times + 1):
        for name, run in sides.items():
            found[name].append(run())
            print(f"run {number}: {name} {found[name][-1]:,.4g} {unit}", flush=True)
    medians = {name: statistics.median(values) for name, values in found.items()}
    for name, values in found.items():
        print(f"{name}: median {medians[name]:,.4g} {unit} ({min(values):,.4g} to {max(values):,.4g})")
    return medians


def shakespeare(ours: Ours, options: argparse.Namespace) -> None:
    """Seconds of the whole process to a validation loss of at most 1.88."""

    def nanogpt() -> float:
        command = [sys.executable, "train.py", "config/train_shakespeare_char.py", *NANOGPT_ON_A_CPU.split()]
        started = time.perf_counter()
        done = subprocess.run(command, check=True, cwd=options.nanogpt, capture_output=True, text=True)
        seconds = time.perf_counter() - started
        print("nanoGPT:", [line for line in done.stdout.splitlines() if line.startswith("step ")][-1])
        return seconds

    def diptych(is_first: bool = False) -> float:
        ours.compiled()
        started = time.perf_counter()
        run = ours.train("shakespeare-quick.toml", is_first=is_first)
        seconds = time.perf_counter() - started
        print(f"diptych: validation loss {validation_loss(metrics(run)[-1]):.4f} over the whole validation text")
        return seconds

    first = "diptych, the first on a machine"
    medians = compare("s", options.times, {"nanoGPT": nanogpt, "diptych": diptych, first: partial(diptych, True)})
    for name in ("diptych", first):
        print(f"nanoGPT takes {medians['nanoGPT'] / medians[name]:.2f} times as long as {name}")


def low(ours: Ours, options: argparse.Namespace) -> None:
    """The lowest validation loss, and when it came below 1.50 and 1.47 (time of the run, validation included)."""
    started = time.perf_counter()
    lines = [line for line in metrics(ours.train("shakespeare-low.toml")) if "seconds" in line or "step" in line]
    print(f"whole process {time.perf_counter() - started:.0f} s")
    seconds, best = 0.0, math.inf
    for line in lines:
        seconds = line.get("seconds", seconds)
        if "validation/bits_per_byte/shakespeare" in line:
            loss = validation_loss(line)
            crossed = [mark for mark in (1.50, 1.47) if loss <= mark < best]
            best = min(best, loss)
            print(f"step {line['step']}, {seconds:.0f} s: {loss:.4f}", *(f"<= {mark}" for mark in crossed))
    print(f"lowest {best:.4f}")


def gpt(ours: Ours, options: argparse.Namespace) -> None:
    nano, steps = str(options.nanogpt), f"run.steps={options.steps}"
    theirs = {
        "nanoGPT float32": lambda: peer(sys.executable, "nanogpt", nano, "float32"),
        "nanoGPT bfloat16 autocast": lambda: peer(sys.executable, "nanogpt", nano, "bfloat16"),
    }
    mine = {"diptych": lambda: ours.speed("gpt-12m.toml", steps)}
    if options.compile:
        theirs["nanoGPT float32, compiled"] = lambda: peer(sys.executable, "nanogpt", nano, "float32", "compiled")
        theirs["nanoGPT bfloat16, compiled"] = lambda: peer(sys.executable, "nanogpt", nano, "bfloat16", "compiled")
        mine["diptych, compiled"] = lambda: ours.speed("gpt-12m.toml", steps, "run.compile=true")
    medians = compare("tokens/s", options.times, theirs | mine)
    for ours_name, name in itertools.product(mine, theirs):
        print(f"{ours_name} / {name}: {medians[ours_name] / medians[name]:.2f}")


def llama(ours: Ours, options: argparse.Namespace) -> None:
    changes = [f"run.steps={options.steps}", *(f"model.overrides.{change}" for change in LLAMA)]
    sides = {
        "transformers Trainer": lambda: peer(options.python, "trainer"),
        "diptych": lambda: ours.speed("gpt-12m.toml", *changes),
    }
    if options.compile:
        sides["diptych, compiled"] = lambda: ours.speed("gpt-12m.toml", *changes, "run.compile=true")
    medians = compare("tokens/s", options.times, sides)
    print(f"diptych / transformers Trainer: {medians['diptych'] / medians['transformers Trainer']:.2f}")


def unet(ours: Ours, options: argparse.Namespace) -> None:
    sides = {
        "diffusers": lambda: peer(options.python, "diffusers"),
        "diptych": lambda: peer(sys.executable, "unet"),
    }
    medians = compare("pictures/s", options.times, sides)
    print(f"diptych / diffusers: {medians['diptych'] / medians['diffusers']:.2f}")


def ranks(ours: Ours, options: argparse.Namespace) -> None:
    """All runs at once, of which one makes some steps while the others are stopped: what two processes lose is less
    than what one minute differs from the next."""
    many = "run.steps=100000"
    ours.compiled()
    sides = {
        "1 process x 2 threads": ours.begin("gpt-12m.toml", many, processes=1, threads=2),
        "2 ranks x 1 thread": ours.begin("gpt-12m.toml", many, processes=2, threads=1),
        "2 ranks x 1 thread, sharded": ours.begin("gpt-12m.toml", many, "parallel.shard=2", processes=2, threads=1),
    }
    found: dict[str, list[float]] = {name: [] for name in sides}
    try:
        for side in sides.values():
            side.turn(WARM)
        for number in range(1, options.times * options.steps // TURN + 1):
            for name, side in sides.items():
                found[name].append(side.turn(TURN))
            print(f"round {number}:", ", ".join(f"{name} {found[name][-1]:,.4g}" for name in sides), flush=True)
    finally:
        for side in sides.values():
            side.end()
    first, *others = sides
    for name, values in found.items():
        print(f"{name}: median {statistics.median(values):,.4g} tokens/s ({min(values):,.4g} to {max(values):,.4g})")
    for name in others:
        shares = sorted(mine / one for mine, one in zip(found[name], found[first], strict=True))
        middle = statistics.median(shares)
        print(
            f"{name} / {first}: {middle:.2f}, the median of {len(shares)} rounds ({shares[0]:.2f} to {shares[-1]:.2f})"
        )


def share(ours: Ours, options: argparse.Namespace) -> None:
    """What of a step's time is neither forward, backward nor optimizer, in the real loop."""
    sides = {"the loop's own share": lambda: float(100 * loop_share(ours.folder, ours.compiled()))}
    compare("%", options.times, sides)


def loop_share(folder: Path, cache: Path) -> float:
    code = "import sys; sys.path.insert(0, sys.argv[1]); import peers; print(peers.loop_share(sys.argv[2]))"
    command = [sys.executable, "-c", code, str(HERE), str(RECIPES / "gpt-12m.toml")]
    environment = os.environ | {"DIPTYCH_CACHE": str(cache)}
    done = subprocess.run(command, check=True, cwd=folder, env=environment, capture_output=True, text=True)
    return float(done.stdout.splitlines()[-1])


SUBJECTS = {one.__name__: one for one in (shakespeare, low, gpt, llama, unet, ranks, share)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", choices=SUBJECTS)
    parser.add_argument("--text", type=lambda name: Path(name).resolve(strict=True))
    parser.add_argument("--nanogpt", type=lambda name: Path(name).resolve(strict=True))
    parser.add_argument("--python", help="of the environment with transformers and diffusers")
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30, help="of a run whose tokens a second are taken")
    parser.add_argument("--compile", action="store_true", help="both sides also with torch.compile")
    options = parser.parse_args()
    needed = {"nanogpt": ("shakespeare", "gpt"), "python": ("llama", "unet")}
    for name, subjects in needed.items():
        if options.subject in subjects and getattr(options, name) is None:
            parser.error(f"{options.subject} needs --{name}")
    if options.subject != "unet" and options.text is None:
        parser.error(f"{options.subject} needs --text")
    with TemporaryDirectory() as folder:
        SUBJECTS[options.subject](Ours(Path(folder), options.text), options)


if __name__ == "__main__":
    main()
