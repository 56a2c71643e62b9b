"""Layouts: what dividing a step changes and what it does not."""

from dataclasses import replace

import pytest

from diptych.train.footprint import Footprint, Work
from diptych.train.layouts import Considered, Layout, Sketch, candidates, cheapest, memory, step_seconds
from diptych.train.machines import MACHINES, PRODUCTS, read_machines

GIB = 2**30
H100 = MACHINES["H100"]


def of_rows(rows: int) -> Footprint:
    """A model of 4 GiB of weights whose rows take 1 GiB and 1e15 operations each."""
    return Footprint(
        rows=rows,
        parameters=GIB,
        active=GIB,
        kept={"weights": 4 * GIB, "optimizer": 8 * GIB, "averages": 4 * GIB, "gradients": 4 * GIB},
        step={"weights": 4 * GIB, "optimizer": 8 * GIB, "averages": 4 * GIB, "activations": rows * GIB},
        update={"weights": 4 * GIB, "optimizer": 8 * GIB, "averages": 4 * GIB, "gradients": 4 * GIB},
        validation={},
        part=(Work(rows * 1e15, 0.0),),
        forward=1,
        optimizing=(Work(0.0, 28 * GIB),),
        validating=0.0,
        block=GIB // 8,
        checkpoint=16 * GIB,
        saving=2 * GIB,
    )


SKETCH = Sketch(of_rows(1), of_rows(64), num_blocks=32, stream=1)


def plain(devices: int = 1, *, tensor: int = 1, accumulate: int = 1, shard: int = 1) -> Layout:
    return Layout(devices, False, tensor, accumulate, shard)


def test_sharding_divides_what_stays_and_copies_do_not() -> None:
    copies, shards = (memory(plain(8, shard=shard), SKETCH, 64) for shard in (1, 8))
    for kind, whole in (("weights", 4), ("optimizer", 8), ("averages", 4)):
        assert copies[kind] == whole * GIB
        assert shards[kind] == whole * GIB // 8
    assert copies["activations"] == shards["activations"] == 8 * GIB


def test_parts_divide_what_passes() -> None:
    assert memory(plain(accumulate=4), SKETCH, 64)["activations"] == 16 * GIB
    assert memory(plain(), SKETCH, 64)["activations"] == 64 * GIB


def test_one_device_takes_the_time_of_its_products() -> None:
    """64 rows of 1e15 operations at the stated share of the peak, and an update that is a copy."""
    products = 64e15 / (PRODUCTS * H100.bfloat16)
    assert step_seconds(plain(), SKETCH, 64, H100) == pytest.approx(products + H100.seconds(0, 28 * GIB))


def test_more_devices_are_faster_but_never_by_more_than_their_number() -> None:
    alone = step_seconds(plain(), SKETCH, 64, H100)
    for layout in (plain(8), plain(8, shard=8), plain(8, tensor=2), plain(8, tensor=8)):
        assert alone / 8 <= step_seconds(layout, SKETCH, 64, H100) < alone


def test_candidates_divide_the_rows_and_use_no_more_than_there_is() -> None:
    found = list(candidates(8, 12, 4, accumulate=2, recompute=False))
    assert len(found) == len(set(found))
    for layout in found:
        assert layout.devices <= 8
        assert layout.replicate * layout.shard * layout.tensor == layout.devices
        assert 12 % (layout.readers * layout.accumulate) == 0
        assert layout.accumulate % 2 == 0
        assert layout.tensor in (1, 2, 4)


def test_the_cheapest_fits_and_is_the_simplest_of_those_that_are_as_fast() -> None:
    one, sharded, parts = plain(8), plain(8, shard=8), plain(8, accumulate=2)
    weighed = [
        Considered(one, {"all": 90}, 1.0),
        Considered(sharded, {"all": 20}, 1.20),
        Considered(parts, {"all": 60}, 1.18),
        Considered(plain(4), {"all": 70}, 2.0),
    ]
    picked = [cheapest(weighed, room) for room in (100, 80, 50, 10)]
    assert [chosen and chosen.layout for chosen in picked] == [one, sharded, sharded, None]
    even = [replace(chosen, seconds=1.0) for chosen in weighed]
    assert cheapest(even, 100) == even[3], "fewer devices, where the others would wait"


@pytest.mark.parametrize(
    ("words", "devices", "name"),
    [
        ("8 x H100", 8, "H100"),
        ("8xh100", 8, "H100"),
        ("2 × L40S", 2, "L40S"),
        ("h200", 1, "H200"),
        ("4 A100", 4, "A100-80"),
        ("A100 40GB", 1, "A100-40"),
        ("1 x RTX 4090", 1, "RTX-4090"),
        ("4090 x 2", 0, ""),
    ],
)
def test_machines_are_read_as_people_write_them(words: str, devices: int, name: str) -> None:
    if not devices:
        with pytest.raises(ValueError, match="unknown machine"):
            read_machines(words)
        return
    count, machine = read_machines(words)
    assert (count, machine.name) == (devices, name)


def test_an_unknown_machine_is_named_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown machine 'H10'; did you mean 'H100'"):
        read_machines("8 x H10")
    with pytest.raises(ValueError, match="must be at least one device"):
        read_machines("0 x H100")
