"""Footprints: exact to the byte and to the operation, and the same on fake tensors as on real ones."""

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from diptych.train.footprint import Footprint, footprint, is_small
from diptych.train.outline import Chore, Outline, channels_last
from diptych.train.recipe import OptimizerSettings

WIDTH, DEPTH, ROWS = 64, 3, 16


class Rows(NamedTuple):
    rows: Tensor


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, WIDTH, bias=False), nn.SiLU(), nn.SiLU(), nn.SiLU()) for _ in range(DEPTH)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


OUTLINE = Outline(
    make=Stack,
    networks=lambda model: [model],
    batch=lambda rows: Rows(torch.randn(rows, WIDTH)),
    loss=lambda model, batch: model(batch.rows).square().mean(),
    unit="rows",
    validation=Chore(lambda model: model(torch.randn(ROWS, WIDTH))),
)
take = partial(footprint, OUTLINE, optimizer=OptimizerSettings(), compute=torch.float32)
PARAMETERS = DEPTH * WIDTH * WIDTH


def total(kinds: dict[str, int]) -> int:
    return sum(kinds.values())


def test_what_stays_is_the_textbook_sum() -> None:
    """Four bytes for each parameter, eight for AdamW's moments and a counter a tensor, four for an average and eight
    for the two of snapshots, four for gradients (Rajbhandari et al. 2020, sec. 3.1, in float32)."""
    found = take(rows=ROWS, average=0.9, snapshots=True)
    assert found.parameters == PARAMETERS
    assert found.kept == {
        "weights": 4 * PARAMETERS,
        "optimizer": 8 * PARAMETERS + 4 * DEPTH,
        "averages": 12 * PARAMETERS,
        "gradients": 4 * PARAMETERS,
    }
    assert found.block == 4 * WIDTH * WIDTH
    assert take(rows=ROWS).kept["averages"] == 0


def test_saving_takes_the_finished_model_and_what_a_file_has_in_another_order() -> None:
    """In bfloat16, beside the weights that wait where their averages are saved; kernels that lie channels last are
    copied, and so are their moments."""
    assert take(rows=ROWS).saving == 2 * PARAMETERS
    assert take(rows=ROWS, average=0.9).saving == 6 * PARAMETERS

    kernels = replace(
        OUTLINE,
        make=lambda: channels_last(nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3, bias=False))),
        batch=lambda rows: Rows(torch.randn(rows, WIDTH, 4, 4)),
        validation=Chore(lambda model: model(torch.randn(ROWS, WIDTH, 4, 4))),
    )
    found = footprint(kernels, ROWS, OptimizerSettings(), torch.float32)
    assert found.saving == found.kept["optimizer"]


def test_muon_keeps_one_number_a_parameter() -> None:
    found = footprint(OUTLINE, ROWS, OptimizerSettings(name="muon"), torch.float32)
    assert found.kept["optimizer"] == 4 * PARAMETERS


def test_products_are_counted_as_in_the_formula() -> None:
    """2 N a row forward, and twice that backward but for the first layer's input, which needs no gradient; an update
    by AdamW has no product, and a validation is a forward."""
    found = take(rows=ROWS)
    assert found.flops == ROWS * (6 * PARAMETERS - 2 * WIDTH * WIDTH)
    assert sum(work.flops for work in found.part[: found.forward]) == ROWS * 2 * PARAMETERS
    assert sum(work.flops for work in found.optimizing) == 0
    assert found.validating == ROWS * 2 * PARAMETERS


def test_attention_on_the_cpu_counts_as_on_a_gpu() -> None:
    """Two products forward and five backward, of 2 T^2 D operations for each head and row."""
    shape = (2, 3, 32, 16)
    outline = Outline(
        make=lambda: nn.Linear(16, 16, bias=False),
        networks=lambda model: [model],
        batch=lambda rows: Rows(torch.randn(*shape)),
        loss=lambda model, batch: nn.functional.scaled_dot_product_attention(*[model(batch.rows)] * 3).sum(),
        unit="rows",
    )
    found = footprint(outline, 2, OptimizerSettings(), torch.float32)
    linear = 2 * 2 * 3 * 32 * 16 * 16
    assert found.flops == 7 * 2 * 2 * 3 * 32 * 32 * 16 + 2 * linear


def test_real_tensors_leave_the_same_footprint_as_fake_ones() -> None:
    """The one thing that fakery could get wrong, held against the step itself; which draws no number of the run's."""
    fake: Footprint = take(rows=ROWS, average=0.9)
    before = torch.get_rng_state()
    real: Footprint = take(rows=ROWS, average=0.9, is_real=True)
    assert torch.equal(torch.get_rng_state(), before)
    assert (real.kept, real.step, real.flops) == (fake.kept, fake.step, fake.flops)
    assert (real.peak, real.block, real.validating) == (fake.peak, fake.block, fake.validating)


def test_a_step_is_small_by_its_model_and_its_batch() -> None:
    """64 numbers a row and 12,288 in the model: 1,024 rows are 65,536 numbers, and 6 x 65,536 x 12,288 is 5e9."""
    before = torch.get_rng_state()
    assert is_small(OUTLINE, 1024)
    assert torch.equal(torch.get_rng_state(), before)
    assert not is_small(OUTLINE, 1025)
    wide = replace(OUTLINE, make=lambda: nn.Linear(1024, 2048, bias=False))
    assert is_small(wide, 120)
    assert not is_small(wide, 1000)  # 8e11 operations


def test_activations_grow_in_a_straight_line_with_the_rows() -> None:
    one, two, four = (total(take(rows=rows).step) for rows in (64, 128, 256))
    assert four - two == 2 * (two - one) > 0


def test_recomputing_keeps_less_and_computes_each_block_once_more() -> None:
    kept, again = take(rows=512), take(rows=512, recompute=True)
    assert again.step["activations"] < kept.step["activations"] / 2
    assert again.flops == kept.flops + 512 * 2 * PARAMETERS


def test_parts_of_a_step_hold_their_gradients_meanwhile() -> None:
    """The second part begins with the gradients of the first."""
    alone, second = take(rows=ROWS), take(rows=ROWS, parts=2)
    assert second.step["gradients"] >= 4 * PARAMETERS
    assert alone.part == second.part[: len(alone.part)] or len(second.part) > len(alone.part)


def test_half_precision_halves_what_is_kept_for_the_backward_pass() -> None:
    full, half = take(rows=4096), footprint(OUTLINE, 4096, OptimizerSettings(), torch.bfloat16)
    assert half.step["activations"] < 0.7 * full.step["activations"]
