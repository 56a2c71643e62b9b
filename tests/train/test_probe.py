"""What is read off a few steps: against closed forms, and against the sources that a run reads from."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from diptych.train import plan as planning
from diptych.train.outline import outline_of
from diptych.train.plan import plan_here
from diptych.train.probe import Probe, _limit
from diptych.train.recipe import Recipe
from diptych.train.tasks import build

Read = Callable[..., Recipe]
MEBIBYTE = 2**20


def probed(**found: float) -> Probe:
    """Four rows in half a second, updated in a tenth."""
    rest = dict.fromkeys(("validating", "sampling", "ending", "reading", "waited", "starting"), 0.0)
    sizes = {"process": 300 * MEBIBYTE, "stepped": 400 * MEBIBYTE, "growth": 0, "looked": 350 * MEBIBYTE}
    return Probe(**{"rows": 4, "seconds": 0.5, "update": 0.1, **rest, **sizes, **found})  # type: ignore[arg-type]


@pytest.mark.parametrize("share", [0.3, 0.6, 0.75])
def test_levels_that_grow_by_a_geometric_series_tend_to_its_sum(share: float) -> None:
    """A level is 1 - share^(steps / 6) of what more steps add: each six add `share` of what the six before them did."""
    start, added = 700 * MEBIBYTE, 300 * MEBIBYTE
    levels = [start + round(added * (1 - share ** (step / 6))) for step in range(13)]
    assert _limit(levels) == pytest.approx(start + added, rel=1e-6)


def test_levels_that_do_not_grow_stay() -> None:
    assert _limit([5, 7, 7, 7, 7]) == 7
    assert _limit([7, 7, 7, 7, 9]) == 9
    assert _limit([3, 9]) == 9


@pytest.mark.parametrize(
    ("workers", "threads", "seconds"),
    [
        (0, 4, 0.6 + 0.2),  # between steps
        (1, 3, 0.6),  # on a core of its own
        (1, 4, 0.6 + 0.2),  # on a core of a step's
        (2, 3, 0.6 + 0.1),  # one of the two on such a core
        (2, 4, 0.6 + 0.2),
    ],
)
def test_a_step_loses_what_those_read_that_have_no_core_of_their_own(
    recipe: Read, monkeypatch: pytest.MonkeyPatch, workers: int, threads: int, seconds: float
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(planning.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(planning, "probe", lambda request: probed(reading=0.2))
    read = recipe("contrastive", f"run.workers={workers}", "run.batch=4")
    assert plan_here(read, threads=threads).step_seconds == pytest.approx(seconds)


def test_reading_that_takes_longer_than_a_step_is_what_a_step_takes(
    recipe: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning.os, "cpu_count", lambda: 16)
    monkeypatch.setattr(planning, "probe", lambda request: probed(reading=4.0))
    read = recipe("contrastive", "run.workers=2", "run.batch=4")
    assert plan_here(read, threads=1).step_seconds == pytest.approx(4.0 / 2)


@pytest.mark.parametrize(("waited", "says"), [(0.02, False), (0.47, True)])
def test_a_plan_says_when_others_had_the_cores(
    recipe: Read, monkeypatch: pytest.MonkeyPatch, waited: float, says: bool
) -> None:
    monkeypatch.setattr(planning, "probe", lambda request: probed(waited=waited))
    assert any("waited 47% of their time" in remark for remark in plan_here(recipe("autoencoder")).remarks) == says


def test_what_grows_between_the_pieces_is_planned(recipe: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    totals = []
    for growth in (0, 50 * MEBIBYTE):
        monkeypatch.setattr(planning, "probe", lambda request, growth=growth: probed(growth=growth, validating=0.1))
        totals.append(plan_here(recipe("autoencoder", "run.batch=4")).total)
    assert totals[1] - totals[0] == pytest.approx(50 * MEBIBYTE, abs=2)


@pytest.mark.parametrize("objective", ["classifier", "contrastive"])
def test_data_made_up_are_read_as_those_of_a_run(recipe: Read, objective: str, tmp_path: Path) -> None:
    read = recipe(objective)
    outline, rows = outline_of(read), range(min(3, read.run.batch))
    assert outline.source is not None
    made_up, real = outline.source(tmp_path, len(rows)).batch(0, rows), build(read).source.batch(0, rows)
    assert type(made_up) is type(real)
    for ours, theirs in zip(made_up, real, strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)


@pytest.mark.parametrize("objective", ["classifier", "contrastive"])
def test_data_made_up_are_no_more_for_a_batch_that_nothing_could_hold(
    recipe: Read, objective: str, tmp_path: Path
) -> None:
    source = outline_of(recipe(objective, "run.batch=10000000")).source
    assert source is not None
    assert len(source(tmp_path, 2).batch(0, range(2))[0]) == 2
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 10 * MEBIBYTE
