"""What a few real steps take on this machine, in a process of their own, so that its memory is that of a run.

`python -m diptych.train.probe` reads one JSON object (a `Request`) from standard input and writes one (a `Probe`).
"""

import json
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

MOST = 12  # steps of one kind that are timed, after one that warms up
LEAST = 3  # of all rows, with the one that warms up
READ = 5  # batches that are read, with the one that warms up
LARGEST_SHARE = 0.8  # that one half of the steps may add of what the half before it did
LEAP = 8  # times as many rows as before


@dataclass(frozen=True)
class Request:
    """Args:
    recipe, overrides: as for `read_recipe`.
    rows: of one part, the most that may be tried.
    seconds: for all steps together, roughly, and for each of the chores beside them.
    does_chores: whether those are done, too.
    began: when the process was started, in seconds as `time.time` counts them.
    threads: of the CPU; None is all.
    dtype: as for `diptych train`.
    """

    recipe: str
    overrides: list[str]
    rows: int
    seconds: float
    does_chores: bool
    began: float
    threads: int | None = None
    dtype: str | None = None


@dataclass(frozen=True)
class Probe:
    """Args:
    rows: that the last steps had.
    seconds: forward and backward of `rows` rows.
    update: seconds of the optimizers and averages.
    validating, sampling, ending: seconds of a piece of each chore of the outline, 0.0 where it was not done.
    reading: seconds of a thread for `rows` rows, 0.0 where reading takes next to nothing.
    waited: share of the steps' time for which threads waited for a core that others had.
    starting: seconds from the start of the process to the first step, with what those that read ahead need to start.
    process: bytes before there was a model; on a GPU those that its allocator has not, when all was done.
    stepped, looked: bytes, the most that there were when the steps were made, and when the chores were done; on a GPU
        those of its allocator.
    growth: bytes that more steps of as many rows will add, as pieces of many sizes leave room between them.
    """

    rows: int
    seconds: float
    update: float
    validating: float
    sampling: float
    ending: float
    reading: float
    waited: float
    starting: float
    process: int
    stepped: int
    growth: int
    looked: int


def probe(request: Request) -> Probe:
    """Raises: ValueError, in one line, where the steps fail."""
    command = [sys.executable, "-m", "diptych.train.probe"]
    done = subprocess.run(command, input=json.dumps(asdict(request)), capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise ValueError(f"the machine could not be measured: {said[-1]}")
    return Probe(**json.loads(done.stdout.splitlines()[-1]))


def measure(request: Request) -> Probe:
    """The same in this process."""
    import torch
    from torch import nn

    import diptych.train.loop  # noqa: F401 - a run has it in memory
    from diptych.core.allocator import give_back, keep_freed_memory
    from diptych.core.precision import choose
    from diptych.core.together import left_out
    from diptych.train.machines import EMPTY_CONTEXT
    from diptych.train.meter import Meter, forget_most_held, most_held, resident_bytes
    from diptych.train.optimizers import make_optimizers
    from diptych.train.outline import NOTHING, Chore, is_short, outline_of
    from diptych.train.plan import plan_here
    from diptych.train.ranks import ALONE, blocks_of
    from diptych.train.recipe import read_recipe
    from diptych.train.state import State
    from diptych.train.step import Stepper, prepare

    keep_freed_memory()  # as `diptych train` does
    if request.threads:
        torch.set_num_threads(request.threads)
    imported = time.time() - request.began
    recipe = read_recipe(request.recipe, request.overrides)
    device, compute = choose(None, request.dtype)

    def beside() -> int:
        """Bytes of the GPU that are in use, but not by this process's allocator."""
        free, total = torch.cuda.mem_get_info(device)
        return int(total - free - torch.cuda.memory_reserved(device))

    used_before = beside() if device.type == "cuda" else 0  # by other processes, too
    outline, does_without = outline_of(recipe), is_short(recipe)
    # A run holds its recipe against the machine and measures its peak before it starts; what that brings into memory
    # stays.
    plan_here(recipe, seconds=0)
    Meter(device, compute)
    process = resident_bytes() if device.type == "cpu" else 0

    class Steps:
        """The outline, as far as the stepper wants a task."""

        model: nn.Module = outline.make().to(device)
        for network in outline.networks(model):  # an adapter's is not a part of it
            network.to(device)

        def count(self, batch: Any) -> int:
            return len(batch[0])

        def loss(self, batch: Any) -> Any:
            return outline.loss(self.model, batch), {}

    task: Any = Steps()
    prepare(outline.networks(task.model), recompute=recipe.run.recompute, compile=recipe.run.compile, blocks=blocks_of)
    optimizers = make_optimizers(task.model, recipe.optimizer, compute)
    state = State(task.model, optimizers, recipe.run.average, with_snapshots=recipe.run.snapshot_every > 0)
    clip, run = recipe.optimizer.clip, recipe.run
    stepper = Stepper(task, optimizers, ALONE, device, compute, clip, run.seed, records=run.records)
    task.model.train()

    updates, levels = [0.0], list[int]()
    for optimizer in optimizers:
        optimizer.register_step_pre_hook(lambda *_: updates.append(updates.pop() - time.perf_counter()))
        optimizer.register_step_post_hook(lambda *_: updates.append(updates.pop() + time.perf_counter()))

    def held() -> int:
        if device.type == "cuda":
            return int(torch.cuda.max_memory_reserved())
        return most_held() if device.type == "cpu" else 0

    def timed(rows: int, least: int, until: float) -> tuple[float, float]:
        """Seconds of forward and backward, and of the update: medians of at least `least` steps, and of as many as
        there is time for, after one that is not counted."""
        times: list[tuple[float, float]] = []
        levels.clear()
        while len(times) <= least or (time.perf_counter() < until and len(times) <= MOST):
            batch = outline.batch(rows)
            updates[0], started = 0.0, time.perf_counter()
            with left_out(does_without):
                done = stepper([batch], state.step, 0.0)
            stepped = time.perf_counter()
            state.advance(done, 0.0)
            update = updates[0] + time.perf_counter() - stepped
            times.append((time.perf_counter() - started - update, update))
            levels.append(held())
        ones, others = zip(*times[1:], strict=True)
        return statistics.median(ones), statistics.median(others)

    starting = time.time() - request.began
    if recipe.run.workers:  # they import the same, and are waited for
        starting += imported
    until = time.perf_counter() + request.seconds
    ran, waited = _shares()
    rows = 1
    seconds, update = timed(rows, 1, 0.0)
    # All rows, in leaps: a step of few takes longer than its share, and says too much of one of many; the more so where
    # other programs want the cores. So they are doubled at least, while there is time.
    while rows < request.rows and time.perf_counter() < until:
        fitting = int(((until - time.perf_counter()) / LEAST - update) / seconds * rows)
        rows = min(request.rows, LEAP * rows, max(2 * rows, fitting))
        is_last = rows == request.rows
        seconds, update = timed(rows, 2 if is_last else 1, until if is_last else 0.0)
    stepped = held()
    ran, waited = (now - before for now, before in zip(_shares(), (ran, waited), strict=True))

    def done_as(chore: Chore) -> float:
        """Seconds of a piece: the median without the first, which may compile. They are as many as a run does, where
        there is time for that, since each leaves a little less room in one piece than the one before."""
        times: list[float] = []
        with state.averaged(), left_out(does_without):
            until = time.perf_counter() + request.seconds
            while len(times) < 2 or (len(times) < chore.pieces and time.perf_counter() < until):
                started = time.perf_counter()
                chore.piece(task.model)
                times.append(time.perf_counter() - started)
        return statistics.median(times[1:])

    def read() -> float:
        """CPU seconds of making `rows` rows, the median without the first one."""
        if outline.source is None:
            return 0.0
        times: list[float] = []
        with TemporaryDirectory() as folder:
            source = outline.source(Path(folder), rows)
            for step in range(READ):
                began = time.thread_time()
                source.batch(step, range(rows))
                times.append(time.thread_time() - began)
        return statistics.median(times[1:])

    growth = _limit(levels) - stepped
    give_back()
    forget_most_held()
    chores = (outline.validation, outline.sampling if recipe.run.sample_every else NOTHING, outline.ending)
    validating, sampling, ending = (done_as(chore) if request.does_chores and chore.pieces else 0.0 for chore in chores)
    looked = held()
    if device.type == "cuda":
        process = EMPTY_CONTEXT + max(0, beside() - used_before)
    torch.set_num_threads(1)  # as those have that read ahead
    return Probe(
        rows=rows,
        seconds=seconds,
        update=update,
        validating=validating,
        sampling=sampling,
        ending=ending,
        reading=read(),
        waited=waited / (ran + waited) if waited else 0.0,
        starting=starting,
        process=process,
        stepped=stepped,
        growth=growth,
        looked=looked,
    )


def _shares() -> tuple[int, int]:
    """Nanoseconds for which this process's threads have run, and for which they wanted to and had no core; 0 and 0
    where the system does not say."""
    ran = waited = 0
    for path in Path("/proc/self/task").glob("*/schedstat"):
        with suppress(OSError):  # a thread that has just ended
            mine = path.read_text().split()
            ran, waited = ran + int(mine[0]), waited + int(mine[1])
    return ran, waited


def _limit(levels: list[int]) -> int:
    """What levels after one step each tend to, if each half of them adds the same share of what the half before it did:
    so it is where the sizes of pieces change from step to step."""
    half = len(levels) // 2
    if half < 2:
        return levels[-1]
    before, later = levels[half] - levels[0], levels[-1] - levels[half]
    share = min(later / before, LARGEST_SHARE) if before else 0.0
    return levels[-1] + round(later * share / (1 - share))


if __name__ == "__main__":
    try:
        print(json.dumps(asdict(measure(Request(**json.loads(sys.stdin.read()))))))
    except (ValueError, RuntimeError, MemoryError) as error:
        sys.exit(str(error).splitlines()[0])
