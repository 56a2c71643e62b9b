"""Layouts: how a step is divided over devices, what each device then holds, and how long a step takes.

Pure functions over two footprints of the same step, of few rows and of many: whatever grows with the rows grows in a
straight line between them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from diptych.train.footprint import STAYING, Footprint, Work
from diptych.train.machines import CONTEXT, LAUNCH, SLACK, WORKSPACES, Machine
from diptych.train.recipe import ParallelSettings

# Share of a block's activations that tensor parallelism does not divide: 10 of 34 (Korthikanti et al. 2022, eq. 2).
UNDIVIDED = 10 / 34
HELD = (*STAYING, "gradients")  # what a process that shares a model has a part of
EXCHANGES = 4  # sums over the devices in a block, two forward and two backward (Shoeybi et al. 2019, sec. 3)
COPIES_TO_SAVE = 2  # of what a process writes of a part of a checkpoint: row by row, and safetensors' bytes (DCP)
NEAR = 1.05  # a layout that takes so much longer than the fastest is as good, if it is simpler


@dataclass(frozen=True, order=True)
class Layout:
    """How the devices share a step, simplest first.

    Args:
        devices: replicate x shard x tensor.
        replicate, shard, tensor: as [parallel] of a recipe.
        accumulate: parts of a step that a device works through one after the other.
        recompute: activations are computed again in the backward pass.
    """

    devices: int
    recompute: bool
    tensor: int
    accumulate: int
    shard: int

    @property
    def replicate(self) -> int:
        return self.devices // (self.shard * self.tensor)

    @property
    def readers(self) -> int:
        return self.devices // self.tensor

    def __str__(self) -> str:
        parts = []
        if self.replicate > 1:
            parts.append(f"{self.replicate} copies")
        if self.shard > 1:
            parts.append(f"{'each ' if self.replicate > 1 else ''}sharded over {self.shard}")
        if self.tensor > 1:
            parts.append(f"matrices divided over {self.tensor}")
        if self.accumulate > 1:
            parts.append(f"{self.accumulate} parts a step")
        if self.recompute:
            parts.append("activations recomputed")
        return ", ".join(parts) or "one copy"

    @property
    def settings(self) -> list[str]:
        """What to write after `diptych train RECIPE`."""
        settings = [f"run.accumulate={self.accumulate}", f"run.recompute={str(self.recompute).lower()}"]
        if self.devices > 1:
            sizes = {"replicate": self.replicate, "shard": self.shard, "tensor": self.tensor}
            settings += [f"parallel.{name}={size}" for name, size in sizes.items()]
        return settings


@dataclass(frozen=True)
class Sketch:
    """A step as few rows and as many show it.

    Args:
        few, many: of one part, without accumulation; they may be the same.
        num_blocks, stream: blocks, and numbers that a row sends from one to the next.
        beside: bytes on each device that are not trained.
    """

    few: Footprint
    many: Footprint
    num_blocks: int
    stream: int
    beside: int = 0

    @cached_property
    def kept(self) -> dict[str, int]:
        return self.many.kept

    def stepping(self, rows: float) -> float:
        """Bytes that pass in forward and backward of one part."""
        return self._between(rows, *(sum(one.step.values()) - one.staying for one in (self.few, self.many)))

    @property
    def updating(self) -> int:
        """Bytes that pass in the update, beside the gradients: Muon works on whole matrices, on every device."""
        return max(0, sum(self.many.update.values()) - self.many.staying - self.kept["gradients"])

    def seconds(self, rows: float, machine: Machine, tensor: int) -> float:
        """Of forward and backward of one part on one device."""
        both = (_busy(footprint.part, machine) for footprint in (self.few, self.many))
        return max(self._between(rows, *both) / tensor, len(self.many.part) * LAUNCH)

    def _between(self, rows: float, few: float, many: float) -> float:
        if self.few.rows == self.many.rows:
            return many
        share = (rows - self.few.rows) / (self.many.rows - self.few.rows)
        return few + (many - few) * share


def _busy(work: tuple[Work, ...], machine: Machine) -> float:
    return sum(machine.seconds(*one) for one in work)


def candidates(devices: int, batch: int, tensor: int, accumulate: int, recompute: bool) -> Iterator[Layout]:
    """Every layout that the rows of a step can be divided by, with at least the recipe's own `accumulate`."""
    for used in range(1, devices + 1):
        for ways in (ways for ways in _divisors(used) if ways <= tensor and ways & (ways - 1) == 0):
            readers = used // ways
            for parts in _divisors(batch // readers) if batch % readers == 0 else []:
                if parts % accumulate:
                    continue
                for shard in {1, readers}:
                    yield Layout(used, recompute, ways, parts, shard)


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def memory(layout: Layout, sketch: Sketch, batch: int) -> dict[str, int]:
    """Bytes on each device at the peak, by kind."""
    divided = layout.shard * layout.tensor
    kept, rows = sketch.kept, batch / layout.readers / layout.accumulate
    share = UNDIVIDED + (1 - UNDIVIDED) / layout.tensor
    gathered = 2 * sketch.many.block / layout.tensor if layout.shard > 1 else 0.0
    activations = sketch.stepping(rows) * share
    gradients = kept["gradients"] / divided
    step = {"activations": activations, "gathered": gathered}
    is_recorded = layout.devices == 1  # then they stay where they are from step to step
    if layout.accumulate > 1 or layout.shard > 1 or is_recorded:  # else they come as activations go
        step["gradients"] = gradients
    update = {"gradients": gradients, "update": float(sketch.updating)}
    passing = max(step, update, key=lambda kinds: sum(kinds.values()))
    return {
        **{kind: round(kept[kind] / divided) for kind in STAYING},
        **{kind: round(count) for kind, count in passing.items()},
        "beside": sketch.beside,
        "allocator": round(SLACK * sum(passing.values())),
        "process": CONTEXT + WORKSPACES,
    }


def divided(whole: Footprint, among: ParallelSettings) -> Footprint:
    """What one of several processes has of a step whose part of the rows is that of `whole`.

    Args:
        among: filled; copies have all of the model each, of which each writes a part.
    """
    if among.processes == 1:
        return whole
    ways = among.shard * among.tensor
    share = UNDIVIDED + (1 - UNDIVIDED) / among.tensor
    gathered = 2 * whole.block // among.tensor if among.shard > 1 else 0

    def part(kinds: dict[str, int]) -> dict[str, int]:
        counts = {kind: count / ways if kind in HELD else count for kind, count in kinds.items()}
        counts |= {"activations": share * counts["activations"]} if "activations" in counts else {}
        return {kind: round(count) for kind, count in counts.items()}

    largest = max(whole.kept[kind] for kind in STAYING) // among.processes
    return replace(
        whole,
        kept=part(whole.kept),
        step=part(whole.step) | {"gathered": gathered},
        update=part(whole.update),
        validation=part(whole.validation) | {"gathered": gathered},
        block=whole.block // ways,
        saving=max(COPIES_TO_SAVE * largest, whole.saving),
    )


def step_seconds(layout: Layout, sketch: Sketch, batch: int, machine: Machine) -> float:
    """A step: parts one after the other, what they exchange where that is not hidden behind the work, the update."""
    rows = batch / layout.readers / layout.accumulate
    part = sketch.seconds(rows, machine, layout.tensor)
    kept, lane = sketch.kept, machine.lane(layout.devices)
    held = kept["weights"] / layout.tensor
    sharded = 3 * held * (layout.shard - 1) / layout.shard / lane  # gathered twice, gradients scattered (FSDP)
    summed = 2 * held / layout.shard * (layout.replicate - 1) / layout.replicate / lane  # a ring of sums
    exchanged = max(0.0, sharded + summed - part * 2 / 3)  # most of it goes on behind the backward pass
    if layout.tensor > 1:
        sent = rows * sketch.stream * 2 * sketch.num_blocks * EXCHANGES
        exchanged += 2 * sent * (layout.tensor - 1) / layout.tensor / machine.lane(layout.tensor)
    work = sketch.many.optimizing
    update = max(_busy(work, machine) / (layout.shard * layout.tensor), len(work) * LAUNCH)
    return layout.accumulate * (part + exchanged) + update


@dataclass(frozen=True)
class Considered:
    """A layout with what it would take: bytes on each device, and seconds a step."""

    layout: Layout
    memory: dict[str, int]
    seconds: float

    @property
    def total(self) -> int:
        return sum(self.memory.values())


def cheapest(considered: list[Considered], room: float) -> Considered | None:
    """Of the layouts that fit into `room` bytes a device: about as fast as the fastest, with the fewest devices, and
    then the simplest. None where none fits."""
    fitting = [one for one in considered if one.total <= room]
    if not fitting:
        return None
    fastest = min(one.seconds for one in fitting)
    return min((one for one in fitting if one.seconds <= NEAR * fastest), key=lambda one: one.layout)
