"""A plan: what a recipe will take, before it is run. Memory by kind, speed, time and energy to the end, room on disk.

For the machine at hand a few real steps are timed and what they really take is weighed; for another one the same step
is laid out by the numbers of its data sheet.
"""

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from diptych.core.kernels import of_another_machine
from diptych.core.precision import choose
from diptych.core.together import left_out
from diptych.train.footprint import STAYING, Footprint, footprint, is_small
from diptych.train.layouts import Considered, Layout, Sketch, candidates, cheapest, divided, memory, step_seconds
from diptych.train.machines import CONTEXT, MACHINES, SLACK, THIS, USABLE, WORKSPACES, Machine, read_machines
from diptych.train.outline import Outline, is_short, outline_of
from diptych.train.probe import Probe, Request, probe
from diptych.train.ranks import blocks_of
from diptych.train.recipe import ONE_PROCESS, ParallelSettings, Recipe, RunSettings

# Of a process on the CPU, beside what its tensors hold, as measured on x86 Linux with glibc: the parts of torch's
# libraries that the first step brings into memory, and the share of what passes that the allocator leaves unused
# between the pieces. It keeps all of it between steps (`allocator`), and nothing while something else is done.
LIBRARIES = 75 * 2**20
COMPILER = 75 * 2**20  # those of torch's compiler, which FSDP2 and divided matrices stand on
FRAGMENTS = 0.27
PROCESS = 322 * 2**20  # Python, torch and the house itself; measured where there is time to
WATTS_A_THREAD = 6.0  # of a CPU: 350 W for 60 cores (Intel Xeon Platinum 8490H, its product page)
PROBE_SECONDS = 8.0
BUSY = 0.1  # share of the time that steps wait for cores, of which a plan says so
MOST_DEVICES = 1024


@dataclass(frozen=True)
class Plan:
    """What a run will take.

    Args:
        on: the machine, in words.
        devices: how many of it there are; the layout may use fewer.
        is_measured: time and memory rest on steps made on this machine.
        parameters, active: numbers in the model, and those that a token passes through: fewer where it has experts.
        layout: over the devices.
        memory: bytes on each device at the peak, by kind. Pages of data that are mapped from disk are not among them:
            they count as the process's own where one asks for its size, and the system takes them back at need.
        reading: bytes of the processes that read data ahead, all of them, in the host's memory.
        room: bytes that a device has for it.
        fits: whether the memory is less than the room.
        step_seconds: one step, with what it loses to reading: on this machine; elsewhere that is left out.
        speed: units (tokens, pictures) a second.
        validating, sampling, ending: seconds of one validation, of the samples once, and of what comes at the end; the
            last two are known where steps were made.
        seconds: to the end, all of this and the start among them.
        watts: of all devices used; an assumption where the machine is not in the table.
        flops: floating-point operations of a step.
        checkpoint, disk: bytes of one checkpoint, and of all that the run keeps at once.
        instead: settings that need less memory and fit, where the plan does not; "" where there are none.
        considered: how many layouts were weighed.
        remarks: what was assumed, a line each.
    """

    recipe: str
    on: str
    devices: int
    is_measured: bool
    parameters: int
    active: int
    layout: Layout
    memory: dict[str, int]
    reading: int
    room: int
    fits: bool
    unit: str
    steps: int
    step_seconds: float
    speed: float
    validating: float
    sampling: float
    ending: float
    seconds: float
    watts: float
    flops: float
    checkpoint: int
    disk: int
    instead: str
    considered: int
    remarks: tuple[str, ...]

    @property
    def total(self) -> int:
        """Bytes on each device at the peak."""
        return sum(self.memory.values())

    @property
    def kilowatt_hours(self) -> float:
        return self.watts * self.seconds / 3.6e6

    def to_dict(self) -> dict[str, Any]:
        layout = {"replicate": self.layout.replicate, **asdict(self.layout)}
        return asdict(self) | {"layout": layout, "total": self.total, "kilowatt_hours": self.kilowatt_hours}


def plan(recipe: Recipe, on: str = THIS, *, threads: int | None = None, dtype: str | None = None) -> Plan:
    """The plan of a recipe.

    Args:
        on: "this", or a number of machines of the table ("8 x H100").
        threads, dtype: as for `diptych train`; of this machine only.

    Raises:
        ValueError: in one line, for what is wrong in the recipe or is not known of the machine.
    """
    if on.strip().lower() == THIS:
        return plan_here(recipe, threads=threads, dtype=dtype)
    devices, machine = read_machines(on)
    return plan_there(recipe, devices, machine)


def plan_here(
    recipe: Recipe,
    *,
    threads: int | None = None,
    dtype: str | None = None,
    seconds: float = PROBE_SECONDS,
    among: ParallelSettings = ONE_PROCESS,
    room: int | None = None,
) -> Plan:
    """On this machine, with the recipe's own settings.

    Args:
        seconds: for steps that are timed; 0 makes none, and so knows memory alone.
        among: the processes of the run, filled. Of several, each of which has a device or a share of one, only the
            memory is known: `seconds` must be 0.
        room: bytes that a process has; None is all that is free.

    Raises:
        ValueError: as `plan`.
    """
    if seconds and among.processes > 1:
        raise ValueError("steps are made by one process alone: of several, seconds must be 0")
    device, compute = choose(None, dtype)
    outline, run = outline_of(recipe), recipe.run
    room = available(device) if room is None else room
    rows = max(1, run.batch // run.accumulate // among.readers)

    def once(rows: int, **how: Any) -> Footprint:
        how |= {"compute": compute, "is_here": device.type == "cpu"}
        return divided(_footprint(recipe, outline, rows, **how), among)

    whole = once(rows, parts=min(run.accumulate, 2), is_real=not seconds and is_small(outline, rows))
    held = _held_here(whole, whole, None, device)
    found: Probe | None = None
    if seconds:
        most = _most_rows(rows, whole, room)
        if most:
            fits = sum(whole.validation.values()) < USABLE * room
            changes, began = list(recipe.overrides), time.time()
            found = probe(Request(str(recipe.path), changes, most, seconds, fits, began, threads, dtype))
            tried = whole if found.rows == rows and run.accumulate == 1 else once(found.rows)
            held = _held_here(whole, tried, found, device)
    held["beside"] = outline.beside
    if device.type == "cpu":
        held["data"] = outline.data
        held["libraries"] += COMPILER if among.shard * among.tensor > 1 else 0
    each = found.seconds / found.rows if found else 0.0
    update = found.update if found else 0.0
    threads = threads or torch.get_num_threads()
    step = _with_reading(run, device, threads, run.batch * each + update, found)
    validating, sampling, ending = _chores(outline, found)
    if found and not found.validating:
        validating = whole.validating / whole.flops * rows * each
    total = sum(held.values())
    # What there is room for, beside what stays:
    passing = room - total + sum(held[kind] for kind in held if kind not in STAYING)
    passing -= sum(held.get(kind, 0) for kind in ("libraries", "process", "beside", "data"))
    name, watts = _this(device, threads)
    layout = Layout(among.processes, run.recompute, among.tensor, run.accumulate, among.shard)
    remarks = list(outline.remarks)
    if found and found.waited > BUSY:
        remarks.append(
            f"the steps waited {found.waited:.0%} of their time for cores that others had: alone they are faster"
        )
    if seconds and not found:
        remarks.append("no step was made to measure: there is no room for one")
    return Plan(
        recipe=recipe.name,
        on=name,
        devices=among.processes,
        is_measured=found is not None,
        parameters=whole.parameters,
        active=whole.active,
        layout=layout,
        memory={kind: size for kind, size in held.items() if size},
        reading=run.workers * (found.process if found and device.type == "cpu" else PROCESS),
        room=room,
        fits=total <= room,
        unit=outline.unit,
        steps=run.steps,
        step_seconds=step,
        speed=run.batch * outline.units / step if step else 0.0,
        validating=validating,
        sampling=sampling,
        ending=ending,
        seconds=(found.starting if found else 0.0)
        + run.steps * step
        + validating * _times(run.steps, run.validate_every)
        + (sampling * _times(run.steps, run.sample_every) if run.sample_every else 0.0)
        + ending,
        watts=watts,
        flops=whole.flops * run.accumulate + sum(work.flops for work in whole.optimizing),
        checkpoint=whole.checkpoint,
        disk=_disk(recipe, whole),
        instead="" if total <= room else _instead(run, once, among.readers, passing),
        considered=1,
        remarks=tuple(remarks),
    )


def plan_there(recipe: Recipe, devices: int, machine: Machine) -> Plan:
    """On devices of another machine, in the cheapest layout that fits."""
    outline, run = outline_of(recipe), recipe.run
    compute = torch.bfloat16
    with torch.device("meta"):
        num_blocks = len([block for network in outline.networks(outline.make()) for block in blocks_of(network)])
    sketches: dict[bool, Sketch] = {}
    weighed: list[Considered] = []
    room, chosen = int(USABLE * machine.memory), None
    for again in sorted({run.recompute, True}):  # with recomputation only where nothing else fits
        layouts = _layouts(devices, recipe, outline, again)
        rows = [run.batch // layout.readers // layout.accumulate for layout in layouts]
        few, many = (
            _footprint(recipe, outline, count, compute=compute, is_here=False, recompute=again)
            for count in (min(rows), max(rows))
        )
        sketches[again] = Sketch(few, many, num_blocks, outline.stream, outline.beside)
        weighed += _weigh(layouts, sketches, run.batch, machine)
        if chosen := cheapest(weighed, room):
            break
    best = chosen or min(weighed, key=lambda one: one.total)
    sketch = sketches[best.layout.recompute]
    many = sketch.many
    a_row = best.seconds / run.batch
    validating = many.validating / many.flops * many.rows * a_row * best.layout.devices
    remarks = [*outline.remarks, *_remarks(best, machine, devices, run.batch)]
    step = best.seconds
    return Plan(
        recipe=recipe.name,
        on=f"{devices} x {machine.name}",
        devices=devices,
        is_measured=False,
        parameters=many.parameters,
        active=many.active,
        layout=best.layout,
        memory={kind: size for kind, size in best.memory.items() if size},
        reading=run.workers * best.layout.devices * PROCESS,
        room=room,
        fits=chosen is not None,
        unit=outline.unit,
        steps=run.steps,
        step_seconds=step,
        speed=run.batch * outline.units / step,
        validating=validating,
        sampling=0.0,
        ending=0.0,
        seconds=run.steps * step + validating * _times(run.steps, run.validate_every),
        watts=machine.watts * best.layout.devices,
        flops=many.flops / many.rows * run.batch + sum(work.flops for work in many.optimizing),
        checkpoint=many.checkpoint,
        disk=_disk(recipe, many),
        instead="" if chosen else _enough(sketches, outline, recipe, devices, machine),
        considered=len(weighed),
        remarks=tuple(remarks),
    )


def _layouts(devices: int, recipe: Recipe, outline: Outline, again: bool) -> list[Layout]:
    return list(candidates(devices, recipe.run.batch, outline.tensor, recipe.run.accumulate, again))


def _weigh(layouts: list[Layout], sketches: dict[bool, Sketch], batch: int, machine: Machine) -> list[Considered]:
    weighed = []
    for layout in layouts:
        sketch = sketches[layout.recompute]
        took = step_seconds(layout, sketch, batch, machine)
        weighed.append(Considered(layout, memory(layout, sketch, batch), took))
    return weighed


def _enough(sketches: dict[bool, Sketch], outline: Outline, recipe: Recipe, devices: int, machine: Machine) -> str:
    """How many of the same devices would hold it, in powers of two."""
    while (devices := 2 << (devices.bit_length() - 1)) <= MOST_DEVICES:
        layouts = _layouts(devices, recipe, outline, again=True)
        layouts = [layout for layout in layouts if layout.devices == devices]
        if found := cheapest(_weigh(layouts, sketches, recipe.run.batch, machine), USABLE * machine.memory):
            return f"{devices} x {machine.name} would hold it: {found.layout}"
    return ""


def _remarks(best: Considered, machine: Machine, devices: int, batch: int) -> list[str]:
    remarks = []
    idle = devices - best.layout.devices
    if idle:
        remarks.append(
            f"{idle} of the devices would not make it faster: a step has {batch} rows, and its operations are too "
            "small or cannot be divided further"
        )
    return remarks


def available(device: torch.device) -> int:
    """Bytes of memory that are free for a program on this machine."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    limits = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        limits += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
        limits += [
            int(Path("/sys/fs/cgroup/memory.max").read_text()) - int(Path("/sys/fs/cgroup/memory.current").read_text())
        ]
    except (OSError, ValueError):
        pass  # not Linux, or no limit for this group of processes
    return min(limits) if limits else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def size(count: float) -> str:
    """Bytes for a reader."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= scale:
            return (
                f"{count / scale:.{2 if count < 10 * scale else 1}f} {unit}"
                if unit == "GiB"
                else (f"{count / scale:.0f} {unit}")
            )
    return f"{count / 1024:.0f} KiB"


def _footprint(
    recipe: Recipe,
    outline: Outline,
    rows: int,
    *,
    compute: torch.dtype,
    is_here: bool,
    parts: int = 1,
    recompute: bool | None = None,
    is_real: bool = False,
) -> Footprint:
    """Args: `is_here` says that the step would run on this CPU, with the kernels that are made for it."""
    run = recipe.run
    with of_another_machine(not is_here), left_out(is_here and is_short(recipe)):
        return footprint(
            outline,
            rows,
            recipe.optimizer,
            compute,
            parts=parts,
            average=run.average,
            snapshots=run.snapshot_every > 0,
            recompute=run.recompute if recompute is None else recompute,
            is_real=is_real,
        )


def _chores(outline: Outline, found: Probe | None) -> tuple[float, float, float]:
    """Seconds of a validation, of the samples once, and of the end, as far as a piece of each was made."""
    if not found:
        return 0.0, 0.0, 0.0
    return (
        found.validating * outline.validation.pieces,
        found.sampling * outline.sampling.pieces,
        found.ending * outline.ending.pieces,
    )


def _with_reading(run: RunSettings, device: torch.device, threads: int, step: float, found: Probe | None) -> float:
    """Seconds of a step whose rows are read between steps, or meanwhile by others. These take the time of a core from
    a step that would have all of them: all its threads wait for the one whose core that is."""
    reading = found.reading / found.rows * run.batch if found else 0.0
    if not run.workers:
        return step + reading
    cores = os.cpu_count() or 1
    crowded = min(1.0, max(0, threads + run.workers - cores) / run.workers) if device.type == "cpu" else 0.0
    return max(step + crowded * reading, reading / run.workers)


def _held_here(whole: Footprint, tried: Footprint, found: Probe | None, device: torch.device) -> dict[str, int]:
    """Bytes by kind on this machine, at the worst of three moments: in a step, in what is done beside the steps, in
    saving. What is free goes back to the system between them. What the tensors hold is known; what the process holds
    beside them was measured with the rows that were tried, and the share that is lost between the pieces grows with
    what passes."""
    if device.type != "cpu":
        return _held_by_gpu(whole, tried, found)
    process, libraries, lost = PROCESS, LIBRARIES, round(FRAGMENTS * whole.stepping)
    looking = sum(whole.validation.values()) - whole.staying
    looking += round(FRAGMENTS * looking)
    if found:
        process = found.process
        libraries = round(found.stepped - process - tried.staying - (1 + FRAGMENTS) * tried.stepping)
        if tried is not whole:  # steps of few rows find room that was left over, and show less
            libraries = max(LIBRARIES // 2, libraries)
        lost, libraries = max(0, lost + min(0, libraries)), max(0, libraries)
        lost += round(found.growth * whole.stepping / tried.stepping)
        if found.validating:
            looking = max(0, found.looked - process - libraries - whole.staying)
    staying = {kind: whole.kept[kind] for kind in STAYING}
    moments = (
        max(whole.step, whole.update, key=lambda kinds: sum(kinds.values())) | {"allocator": lost},
        staying | {"validation": looking},
        staying | {"saving": whole.saving},
    )
    worst = max(moments, key=lambda kinds: sum(kinds.values()))
    return worst | {"libraries": libraries, "process": process}


def _held_by_gpu(whole: Footprint, tried: Footprint, found: Probe | None) -> dict[str, int]:
    """The same on a GPU, whose allocator says what it took for the rows that were tried: with what the tensors of a
    step do not show, such as the workspaces of cuBLAS and gradients that stay for recorded steps."""
    known, lost, process = sum(whole.peak.values()), round(SLACK * whole.passing), CONTEXT + WORKSPACES
    if found and found.stepped:
        lost = max(0, found.stepped - sum(tried.peak.values())) + round(SLACK * (whole.passing - tried.passing))
        lost, process = max(lost, found.looked - known), found.process
    return whole.peak | {"allocator": lost, "process": process}


def _most_rows(rows: int, whole: Footprint, room: int) -> int:
    """Rows that can be tried on this machine without filling it."""
    left = 0.8 * room - PROCESS - LIBRARIES - whole.staying
    each = (1 + FRAGMENTS) * whole.stepping / rows
    return max(0, min(rows, int(left / each)))


def _this(device: torch.device, threads: int) -> tuple[str, float]:
    """The machine at hand, in words, and its watts."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        known = next((machine for key, machine in MACHINES.items() if key.split("-")[0] in name), None)
        return f"this machine ({name})", known.watts if known else 300.0
    return f"this machine ({threads} CPU thread{'s' if threads > 1 else ''})", WATTS_A_THREAD * threads


def _instead(run: RunSettings, once: Callable[..., Footprint], readers: int, passing: float) -> str:
    """The settings of a process with which no more than so many bytes pass, the quickest first."""
    batch = max(1, run.batch // readers)
    for again in sorted({run.recompute, True}):
        few, many = (once(rows, parts=2, recompute=again) for rows in (1, max(1, batch // run.accumulate)))
        sketch = Sketch(few, many, 0, 0)
        looking = (1 + FRAGMENTS) * (sum(many.validation.values()) - many.staying)
        for parts in (parts for parts in range(run.accumulate, batch + 1) if batch % parts == 0):
            step = (1 + FRAGMENTS) * max(sketch.stepping(batch / parts), sum(many.update.values()) - many.staying)
            if max(step, looking, many.saving) <= passing:
                return f"run.accumulate={parts} run.recompute={str(again).lower()} fits"
    return ""


def _disk(recipe: Recipe, whole: Footprint) -> int:
    """Bytes of everything that a run keeps at once: checkpoints (one more while it is written), snapshots in float16,
    the finished model and the best."""
    run = recipe.run
    last = run.save_every or run.steps
    kept = min(run.keep + 1, _times(run.steps, last) + 1)
    kept += run.steps // run.keep_every if run.keep_every else 0
    snapshots = run.steps // run.snapshot_every if run.snapshot_every else 0
    models = (1 + run.keep_best) * 4 * whole.parameters
    return kept * whole.checkpoint + snapshots * 4 * whole.parameters + models


def _times(steps: int, every: int) -> int:
    """How often something is done every so many steps, and at the end."""
    return -(-steps // every) if every else 1
