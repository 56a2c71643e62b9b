"""--grid: the same prompt and seed under every pair of two settings' values, as one labelled picture."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.cli import frame
from diptych.cli.image_save import stem

if TYPE_CHECKING:
    from diptych.cli.image_easel import Easel, Watch


def axes_of(words: list[str]) -> dict[str, list[Any]]:
    """Settings and their values, checked: the first along the columns, the second along the rows."""
    from diptych.image.grid import axis, checked

    with frame.settings():
        axes = [axis(one) for one in words]
        checked(axes)
    return {one.name: list(one.values) for one in axes}


def paint_grid(easel: "Easel", out: Path | None, watch: "Watch") -> tuple[list[Path], dict[str, Any], str]:
    """The file, how it was made, and a line about it. Each cell is painted by itself, from the one seed."""
    from diptych.image.grid import Axis, checked, sheet
    from diptych.image.photo import save_png

    with frame.settings():
        axes = [Axis.again(name, values) for name, values in easel.wanted["grid"].items()]
        checked(axes)
    across, down = axes[0], axes[1] if len(axes) > 1 else Axis("", ())
    rows: list[dict[str, Any]] = [{down.name: value} for value in down.values] or [{}]
    changes = [{across.name: value} | row for row in rows for value in across.values]
    names = [f"picture {number + 1} of {len(changes)}" for number in range(len(changes))]
    images, each = easel.paint_each(changes, names, watch)
    width = len(across.values)
    cells = [images[place : place + width] for place in range(0, len(images), width)]
    facts = easel.whole_facts(each[0], "grid")
    told = {
        "prompt": facts["prompt"],
        "seed": f"seed {facts['seed']}",
        "steps": f"{facts['steps']} steps",
        "sampler": str(facts["sampler"]),
        "guidance_scale": f"guidance {facts['guidance_scale']:g}",
    }
    title = ", ".join(words for name, words in told.items() if name not in (across.name, down.name))
    whole = sheet(cells, across.labels, down.labels, title)
    path = out or Path(f"{frame.unused(stem(facts) + '-grid', '.png')}.png")
    save_png(whole, path, facts)
    said = f"{len(images)} pictures in {len(rows)} x {width}, {whole.width} x {whole.height}, seed {facts['seed']}"
    return [path], facts, said
