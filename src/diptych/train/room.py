"""Whether this machine has the memory and the disk that a run needs, asked before anything starts."""

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

from diptych.core.precision import choose
from diptych.train.footprint import STAYING
from diptych.train.meter import resident_bytes
from diptych.train.outline import has_outline
from diptych.train.plan import Plan, available, plan_here, size
from diptych.train.ranks import ALONE, Ranks
from diptych.train.recipe import ParallelSettings, Recipe


def check_start(recipe: Recipe, folder: Path, *, dtype: str | None = None, ranks: Ranks = ALONE) -> None:
    """Hold a recipe against this machine before anything starts; it takes up to a few seconds. A kind of training that
    has no outline is not held back. Of several processes one on each machine looks, and none goes on where one may not.

    Raises:
        ValueError: as `check_room`.
    """
    refusal = None
    if ranks.is_first_here and has_outline(recipe):
        try:
            check_room(_planned(recipe, dtype, ranks.settings, ranks.here), folder)
        except ValueError as error:
            refusal = error
    if ranks.any(refusal is not None):
        raise refusal or ValueError("the run was refused, as another of its processes says")


def _planned(recipe: Recipe, dtype: str | None, among: ParallelSettings, here: int) -> Plan:
    """Args: `here` of the processes of the run are on this machine, and this is one of them."""
    device, _ = choose(None, dtype)
    room = None
    if here > 1 and device.type == "cpu":  # all of them hold something already
        room = available(device) // here + resident_bytes()
    on = partial(plan_here, recipe, dtype=dtype, seconds=0, room=room)
    planned = on(among=among)
    if not planned.fits and among.replicate > 1:
        shards = replace(among, replicate=1, shard=among.readers)
        if on(among=shards).fits:
            return replace(planned, instead=f"parallel.replicate=1 parallel.shard={shards.shard} fits")
    return planned


def check_room(planned: Plan, folder: Path) -> None:
    """Hold a plan of this machine against the memory and the disk that are free.

    Args:
        folder: of the run; it need not exist yet.

    Raises:
        ValueError: in one line, for the first of them that does not suffice.
    """
    if not planned.fits:
        staying = sum(planned.memory.get(kind, 0) for kind in STAYING)
        smaller = "run.batch" if staying < planned.room else f"model, whose numbers alone are {size(staying)},"
        instead = planned.instead or f"a smaller {smaller} needs less"
        who, free = ("the run needs", "are free") if planned.devices == 1 else ("each process needs", "are free for it")
        raise ValueError(
            f"not enough memory: {who} about {size(planned.total)}, and {size(planned.room)} {free}; {instead}"
        )
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    free_bytes = shutil.disk_usage(place).free
    if planned.disk > free_bytes:
        raise ValueError(
            f"not enough room on the disk: '{folder}' needs about {size(planned.disk)} for its checkpoints "
            f"({size(planned.checkpoint)} each), and {size(free_bytes)} are free; a smaller run.keep needs less"
        )
