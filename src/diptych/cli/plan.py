"""`diptych plan`: what a recipe will take, before it is run: memory, speed, time, energy, and how to lay it out."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from diptych.cli import frame

if TYPE_CHECKING:
    from diptych.train.plan import Plan


def plan(
    recipe: frame.RecipeFile,
    changes: frame.Changes = None,
    on: Annotated[str, typer.Option(help="'this', or devices by number and name, like '8 x H100'.")] = "this",
    json: Annotated[bool, typer.Option("--json", help="One JSON object instead of words.")] = False,
    threads: frame.Threads = None,
    dtype: frame.Dtype = None,
) -> None:
    """Say what a recipe will take: memory by kind, speed, time and energy to the end. It needs no data."""
    chosen = frame.recipe(recipe, changes, threads)
    frame.training_format(dtype)
    is_here = on.strip().lower() == "this"
    if not is_here:
        from diptych.train.machines import read_machines

        with frame.settings():
            read_machines(on)
    elif frame.is_terminal(sys.stderr):
        frame.say("measuring a few steps on this machine ...")
    from diptych.train.plan import plan as make

    planned = make(chosen, on, threads=threads, dtype=dtype)
    if json:
        frame.json_line(planned.to_dict())
    else:
        print("\n".join(lines(planned)))


def lines(planned: "Plan") -> list[str]:
    """The plan for a reader."""
    from diptych.cli.train import duration
    from diptych.train.plan import size

    how = "measured with a few steps" if planned.is_measured else "estimated"
    told = [
        f"{planned.recipe} on {planned.on} ({how})",
        "",
        f"  parameters    {planned.parameters:,}{_active(planned)}",
        f"  layout        {_layout(planned)}",
        f"  memory        {size(planned.total)}{' a device' if planned.devices > 1 else ''}, of "
        f"{size(planned.room)} that are free",
    ]
    told += [f"    {kind:<12}{size(count):>10}" for kind, count in planned.memory.items() if count >= 2**20]
    if planned.reading:
        told.append(f"  reading ahead {size(planned.reading)} more of the host's memory")
    if planned.step_seconds:
        total = planned.seconds
        told += [
            f"  speed         {_number(planned.speed)} {planned.unit}/s, {_seconds(planned.step_seconds)} a step, "
            f"{planned.flops / planned.step_seconds / 1e12:,.3g} TFLOP/s",
            f"  time          {duration(total)} for {planned.steps:,} steps; a validation takes "
            f"{_seconds(planned.validating)}",
            f"  energy        {_energy(planned.kilowatt_hours)} at {planned.watts:,.0f} W",
        ]
    told.append(f"  disk          {size(planned.disk)}, checkpoints of {size(planned.checkpoint)}")
    told += ["", *(f"  {remark}" for remark in planned.remarks)] if planned.remarks else []
    told.append("")
    if not planned.fits:
        told.append(f"It does not fit.{f' {planned.instead}.' if planned.instead else ' Nothing tried here does.'}")
    elif planned.devices > 1 or not planned.is_measured:
        told.append(f"As settings of 'diptych train': {' '.join(planned.layout.settings)}")
    return told[:-1] if not told[-1] else told


def _active(planned: "Plan") -> str:
    return f", of which a token uses {planned.active:,}" if planned.active < planned.parameters else ""


def _layout(planned: "Plan") -> str:
    used = planned.layout.devices
    which = f"{used} of {planned.devices} devices, " if used < planned.devices else ""
    many = f"; the cheapest that fits, of {planned.considered}" if planned.considered > 1 and planned.fits else ""
    return f"{which}{planned.layout}{many}"


def _number(count: float) -> str:
    return f"{count:,.0f}" if count >= 100 else f"{count:.3g}"


def _seconds(count: float) -> str:
    return f"{count:.3g} s" if count >= 1 else f"{1000 * count:.3g} ms"


def _energy(kilowatt_hours: float) -> str:
    return f"{kilowatt_hours:,.3g} kWh" if kilowatt_hours >= 0.1 else f"{1000 * kilowatt_hours:.3g} Wh"
