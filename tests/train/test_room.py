"""Whether there is room for a run is known before it starts, for one process and for several."""

from dataclasses import replace
from pathlib import Path

import pytest

from diptych.train.plan import Plan, plan_here
from diptych.train.recipe import ONE_PROCESS, ParallelSettings, read_recipe
from diptych.train.room import _planned, check_room


@pytest.fixture
def planned(tale: Path) -> Plan:
    return plan_here(read_recipe(tale), seconds=0)


def test_too_little_memory_is_one_line_with_a_way_out(planned: Plan, tmp_path: Path) -> None:
    check_room(planned, tmp_path / "not" / "yet")
    small = replace(planned, room=planned.total // 2, fits=False, instead="run.accumulate=4 run.recompute=false fits")
    with pytest.raises(ValueError, match=r"not enough memory: the run needs about .* free; run\.accumulate=4") as said:
        check_room(small, tmp_path)
    assert "\n" not in str(said.value)


def test_a_smaller_batch_is_no_way_out_where_the_model_alone_is_too_large(planned: Plan, tmp_path: Path) -> None:
    staying = sum(planned.memory[kind] for kind in ("weights", "optimizer", "averages"))
    with pytest.raises(ValueError, match=r"; a smaller run\.batch needs less$"):
        check_room(replace(planned, room=staying + 2**20, fits=False, instead=""), tmp_path)
    with pytest.raises(ValueError, match=r"; a smaller model, whose numbers alone are .* MiB, needs less$"):
        check_room(replace(planned, room=staying - 2**20, fits=False, instead=""), tmp_path)


def test_too_little_disk_is_one_line(planned: Plan, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"not enough room on the disk: .* free; a smaller run\.keep needs less"
    ) as said:
        check_room(replace(planned, disk=2**60), tmp_path)
    assert "\n" not in str(said.value)


def test_a_run_is_refused_before_it_starts(tale: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diptych.cli import main

    monkeypatch.setattr("diptych.train.plan.available", lambda device: 2**20)
    assert main(["train", "tale.toml"]) == 1
    assert not (tale.parent / "runs").exists()


LARGE = ["model.overrides.width=1024", "model.overrides.num_heads=16", "model.overrides.hidden=4096", "run.batch=2"]


def test_copies_that_do_not_fit_are_told_how_shards_would(tale: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes of one machine have half of what is free each, beside what they hold already."""
    large = read_recipe(tale, LARGE)
    copies, shards = ParallelSettings(2, 1, 1), ParallelSettings(1, 2, 1)
    copy, shard = (plan_here(large, seconds=0, among=among).total for among in (copies, shards))
    assert shard < copy
    monkeypatch.setattr("diptych.train.room.resident_bytes", lambda: 300 * 2**20)
    monkeypatch.setattr("diptych.train.room.available", lambda device: 2 * (copy - 300 * 2**20))
    assert _planned(large, None, copies, here=2).fits
    monkeypatch.setattr("diptych.train.room.available", lambda device: 2 * (shard - 300 * 2**20))
    refused = _planned(large, None, copies, here=2)
    assert not refused.fits
    assert _planned(large, None, shards, here=2).fits
    with pytest.raises(
        ValueError,
        match=r"not enough memory: each process needs about .*, and .* are free for it; parallel\.replicate=1 "
        r"parallel\.shard=2 fits$",
    ):
        check_room(refused, tale.parent)


def test_what_stays_of_a_model_is_divided_among_those_who_share_it(tale: Path) -> None:
    large = read_recipe(tale, [*LARGE, "run.average=0.9"])
    one, copies, shards, tensor, hybrid = (
        plan_here(large, seconds=0, among=among).memory
        for among in (
            ONE_PROCESS,
            ParallelSettings(2, 1, 1),
            ParallelSettings(1, 2, 1),
            ParallelSettings(1, 1, 2),
            ParallelSettings(2, 2, 1),
        )
    )
    for kind in ("weights", "optimizer", "averages"):
        assert copies[kind] == one[kind]
        assert shards[kind] == tensor[kind] == hybrid[kind] == pytest.approx(one[kind] / 2, abs=1)
