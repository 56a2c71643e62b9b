"""Plans: they need no data, their memory is that of a run, and what does not fit is said before anything starts."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from diptych.train.footprint import Footprint, footprint
from diptych.train.machines import CONTEXT, MIB, SLACK, WORKSPACES
from diptych.train.meter import FlopCounter
from diptych.train.outline import outline_of
from diptych.train.plan import _held_here, plan, plan_here
from diptych.train.probe import Probe
from diptych.train.recipe import Recipe, read_recipe
from diptych.train.tasks import TASKS, build

# How far a plan is from a validation: pieces are the largest, a pairing compares beside, and a painter's 80 predictions
# count as 96 where the last call of its text encoder is a small one.
PIECES = {"autoencoder": 1e-9, "classifier": 1e-9, "contrastive": 1e-3, "diffusion": 0.2}


def test_experts_are_planned_by_the_products_that_they_make(tale: Path) -> None:
    """On fake tensors nobody is chosen, and yet the operations are those of a real step: the chosen experts' alone."""
    experts = '{num_experts=8, top_k=2, hidden=96, balance="none", z_loss_weight=0}'
    recipe = read_recipe(tale, ["run.batch=2", f"model.overrides.experts={experts}"])
    outline = outline_of(recipe)
    found = footprint(outline, 2, recipe.optimizer, torch.float32)
    torch.manual_seed(0)
    model = outline.make()
    model.train()
    with FlopCounter() as counter:
        outline.loss(model, outline.batch(2)).backward()
    assert found.flops == counter.flops
    dense = footprint(
        outline_of(read_recipe(tale, ["run.batch=2", "model.overrides.hidden=192"])), 2, recipe.optimizer, torch.float32
    )
    routers = 2 * 3 * 2 * (2 * 256) * 256 * 8  # of both layers, forward and backward
    assert found.flops == dense.flops + routers
    assert found.active == dense.parameters + 2 * 256 * 8
    assert found.parameters == found.active + 2 * 6 * 3 * 256 * 96


def peak_of_a_run(folder: Path) -> int:
    """The most memory that `diptych train` held, in a process of its own."""
    (folder / "tale.txt").write_text("Once upon a time there was a cat. It sat on a beach and saw the sea.\n" * 400)
    code = (
        "import sys; from diptych.cli import main; from diptych.train.meter import most_held; "
        "status = main(sys.argv[1:]); print(most_held()); sys.exit(status)"
    )
    command = [sys.executable, "-c", code, "train", "tale.toml", "--threads", "1", "--dtype", "float32"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


def test_the_memory_of_a_plan_is_that_of_a_run(tale: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within 10 %, where over 100 MB pass in a step, of which the plan has tried some rows."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # the CPU's memory, also where there is a GPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    planned = plan_here(read_recipe(tale), threads=1, dtype="float32", seconds=2)
    assert planned.is_measured
    assert sum(planned.memory[kind] for kind in ("activations", "gradients", "allocator")) > 100 * 2**20
    assert planned.total == pytest.approx(peak_of_a_run(tale.parent), rel=0.1)


def test_on_a_gpu_a_plan_holds_what_the_allocator_took(tale: Path) -> None:
    """With what it took beside the tensors of the rows that were tried; without steps, what is known of devices."""
    recipe = read_recipe(tale)
    whole, few = (footprint(outline_of(recipe), rows, recipe.optimizer, torch.bfloat16) for rows in (24, 6))
    known, tried = (sum(one.peak.values()) for one in (whole, few))
    found = Probe(24, 1.0, 0.1, 0.1, 0.0, 0.0, 0.0, 0.0, 1.0, 800 * MIB, known + 100 * MIB, 0, known + 120 * MIB)

    def held(tried: Footprint, found: Probe | None) -> tuple[int, int]:
        kinds = _held_here(whole, tried, found, torch.device("cuda"))
        assert sum(kinds.values()) == known + kinds["allocator"] + kinds["process"]
        return kinds["allocator"], kinds["process"]

    assert held(whole, None) == (round(SLACK * whole.passing), CONTEXT + WORKSPACES)
    assert held(whole, found) == (120 * MIB, 800 * MIB)
    assert held(whole, replace(found, looked=0)) == (100 * MIB, 800 * MIB)
    grown = round(SLACK * (whole.passing - few.passing))
    assert held(few, replace(found, rows=6, stepped=tried + 50 * MIB, looked=0)) == (50 * MIB + grown, 800 * MIB)


def test_a_validation_is_planned_by_the_documents_once_they_were_read(tale: Path) -> None:
    """512 bytes are half a context of 256 tokens of about 4; before, a plan assumes, and says so."""
    texts = [f"{number:03d}" + "a cat sat " * 60 for number in range(200)]
    tale.with_name("tales.jsonl").write_text("".join(json.dumps({"text": text[:512]}) + "\n" for text in texts))
    recipe = read_recipe(tale, ['data.mix={"tales.jsonl"=1}', "data.validation_documents=2"])
    (remark,) = outline_of(recipe).remarks
    assert remark == "a validation reads 2 documents of about 4 contexts"
    build(recipe)
    outline = outline_of(recipe)
    assert outline.validation.pieces == pytest.approx(2 * 0.5)
    assert outline.remarks == ()


@pytest.mark.parametrize("objective", TASKS)
def test_an_outline_is_the_shape_of_its_task(recipe: Any, objective: str) -> None:
    """The same tensors in the model and in a batch, and a loss to go down from, without the data that a task needs."""
    read: Recipe = recipe(objective)
    outline, task = outline_of(read), build(read)

    def shapes(tensors: Any) -> list[tuple[Any, ...]]:
        return [(tuple(tensor.shape), tensor.dtype) for tensor in tensors]

    model, batch = outline.make(), outline.batch(read.run.batch)
    assert shapes(model.state_dict().values()) == shapes(task.model.state_dict().values())
    for mine, own in zip(model.parameters(), task.model.parameters(), strict=True):
        assert mine.ndim != 4 or mine.is_contiguous(memory_format=torch.channels_last), own.shape
    trained = [parameter.requires_grad for parameter in task.model.parameters()]
    assert [parameter.requires_grad for parameter in model.parameters()] == trained
    real = task.source.batch(0, range(read.run.batch))
    assert type(batch) is type(real)
    assert shapes(batch) == shapes(real)
    assert len(outline.networks(model)) == len(task.networks)
    loss = outline.loss(model, batch)
    assert loss.shape == ()
    assert torch.isfinite(loss)
    assert outline.unit == task.unit


@pytest.mark.parametrize(("objective", "off"), PIECES.items())
def test_an_outline_does_what_a_run_does_beside_its_steps(recipe: Any, objective: str, off: float) -> None:
    """By the products of a real validation."""
    read: Recipe = recipe(objective)
    outline, task = outline_of(read), build(read)
    model = outline.make().eval()

    def products(work: Any) -> int:
        with torch.no_grad(), FlopCounter() as counter:
            work()
        return counter.flops

    task.model.eval()
    piece = products(lambda: outline.validation.piece(model))
    assert piece * outline.validation.pieces == pytest.approx(products(task.validate), rel=off)


@pytest.mark.parametrize("objective", TASKS)
def test_what_is_done_beside_the_steps_needs_no_data(
    recipe: Any, objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DIPTYCH_DATA", raising=False)
    outline = outline_of(recipe(objective))
    model = outline.make().eval()
    with torch.no_grad():
        for chore in (outline.validation, outline.sampling, outline.ending):
            chore.piece(model)
    if objective == "classifier":
        assert outline.ending.pieces == 0
        assert "scenes that are drawn and read at the end are left out" in outline.remarks[0]


def test_the_time_of_a_plan_is_the_sum_of_all_that_a_run_does(recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """40 steps of 4 rows, with validations of 8 pictures at once at 15, 30 and 40, samples of 30 steps at 20 and 40,
    and at the end the latents of 512 pictures."""
    every = ("run.steps=40", "run.batch=4", "run.validate_every=15", "run.sample_every=20")
    made = Probe(
        rows=4, seconds=0.5, update=0.1, validating=0.2, sampling=0.3, ending=0.4, reading=0.0, waited=0.0,
        starting=7.0, process=2**28, stepped=2**29, growth=0, looked=2**30,
    )  # fmt: skip
    monkeypatch.setattr("diptych.train.plan.probe", lambda request: made)
    planned = plan_here(recipe("autoencoder", *every))
    assert (planned.step_seconds, planned.validating, planned.sampling) == pytest.approx((0.6, 0.2, 0))
    assert planned.seconds == pytest.approx(7 + 40 * 0.6 + 3 * 0.2 + 0.4 * 512 / 8)
    planned = plan_here(recipe("diffusion", *every))
    assert (planned.sampling, planned.ending) == pytest.approx((30 * 0.3, 0))
    assert planned.seconds == pytest.approx(7 + 40 * 0.6 + 3 * planned.validating + 2 * 30 * 0.3)


@pytest.mark.parametrize(("stepped", "looked"), [(500, 400), (400, 500)])
def test_the_memory_of_a_plan_is_the_most_of_steps_and_of_what_is_beside_them(
    recipe: Any, monkeypatch: pytest.MonkeyPatch, stepped: int, looked: int
) -> None:
    """What was weighed with all rows is the answer, and what the probe has not, held-out pictures, comes on top: what
    is free goes back between the two, so they do not add up."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    read = recipe("autoencoder")
    made = Probe(
        rows=4, seconds=0.5, update=0.1, validating=0.2, sampling=0.0, ending=0.4, reading=0.0, waited=0.0,
        starting=7.0, process=300 * 2**20, stepped=stepped * 2**20, growth=0, looked=looked * 2**20,
    )  # fmt: skip
    monkeypatch.setattr("diptych.train.plan.probe", lambda request: made)
    assert plan_here(read).total == pytest.approx(500 * 2**20 + 8 * 3 * 32 * 32, abs=4)


def test_a_plan_for_another_machine_needs_neither_it_nor_the_data(tale: Path) -> None:
    planned = plan(read_recipe(tale, ["run.batch=64", "model.overrides.width=2048", "model.context=2048"]), "8 x H100")
    assert planned.fits
    assert planned.total < planned.room
    assert planned.layout.devices == 8
    assert planned.seconds > planned.steps * planned.step_seconds > 0
    assert planned.speed == pytest.approx(64 * 2048 / planned.step_seconds)
    assert planned.kilowatt_hours == pytest.approx(8 * 700 * planned.seconds / 3.6e6)
    json.dumps(planned.to_dict(), allow_nan=False)


def test_what_is_too_large_says_what_would_hold_it(tale: Path) -> None:
    planned = plan(read_recipe(tale, ["run.batch=16", "model.overrides.hidden=2000000"]), "1 x L4")
    assert not planned.fits
    assert " x L4 would hold it: " in planned.instead


def test_the_way_out_is_one_that_fits(tale: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for half of what a step leaves to the allocator, parts are proposed, and with them the plan fits."""
    whole = plan_here(read_recipe(tale), seconds=0)
    room = whole.total - whole.memory["allocator"] // 2
    monkeypatch.setattr("diptych.train.plan.available", lambda device: room)
    refused = plan_here(read_recipe(tale), seconds=0)
    assert not refused.fits
    settings = refused.instead.removesuffix(" fits").split()
    assert settings[0].startswith("run.accumulate=")
    assert plan_here(read_recipe(tale, settings), seconds=0).fits
