"""A recipe chooses its denoiser: transformers are trained, saved, opened and painted with as the U-Net is."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from diptych.image.model import ImageModel
from diptych.train.footprint import footprint
from diptych.train.loop import train
from diptych.train.meter import FlopCounter
from diptych.train.outline import outline_of
from diptych.train.recipe import Recipe
from diptych.train.run import RunDirectory
from diptych.train.tasks import build

Read = Callable[..., Recipe]
DENOISERS = {
    "dit": "model.dit={ width = 32, num_layers = 2, num_heads = 2 }",
    "mmdit": "model.mmdit={ num_heads = 2, head_dim = 16, joint_layers = 2 }",
}


@pytest.mark.parametrize("kind", DENOISERS)
def test_a_transformer_is_trained_as_the_denoiser_and_paints(recipe: Read, tmp_path: Path, kind: str) -> None:
    """What a run saves opens, paints, begins another run, and was planned at the size that it has."""
    changes = (f"model.network={kind}", "model.unet={}", DENOISERS[kind])
    chosen = recipe("diffusion", *changes)
    task = build(chosen)
    assert {name.partition(".")[0] for name in task.model.state_dict()} == {"encoder", kind}
    planned = outline_of(chosen).make()
    sizes, real = (
        {name: value.shape for name, value in model[kind].state_dict().items()} for model in (planned, task.model)
    )
    assert sizes == real
    directory = RunDirectory(tmp_path / "run")
    before = [value.clone() for value in task.painter.network.parameters()]
    train(chosen, task, directory, lambda progress: None)
    assert any(not torch.equal(*pair) for pair in zip(before, task.painter.network.parameters(), strict=True))
    painter = ImageModel.load(directory.model, dtype="float32")
    assert painter.generate("a cat", steps=2, seed=1).result().image.size == (32, 32)
    again = build(recipe("diffusion", *changes, f"run.init_from={directory.model}"))
    assert kind in again.model


@pytest.mark.parametrize("kind", DENOISERS)
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_a_transformer_is_planned_by_the_products_that_it_makes(recipe: Read, kind: str, compute: torch.dtype) -> None:
    """On fake tensors, without data; the operations of a step are those of a real one."""
    chosen = recipe("diffusion", f"model.network={kind}", "model.unet={}", DENOISERS[kind])
    outline = outline_of(chosen)
    found = footprint(outline, 4, chosen.optimizer, compute)
    model = outline.make()
    with FlopCounter() as counter, torch.autocast("cpu", compute, enabled=compute != torch.float32):
        outline.loss(model, outline.batch(4)).backward()  # type: ignore[no-untyped-call]
    assert found.flops == counter.flops
    assert found.parameters == sum(one.numel() for one in model.parameters())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["model.network=dut"], "unknown model.network 'dut'; did you mean 'dit'?"),
        (["model.network=dit"], "model.unet does not go with the network 'dit'"),
        (["model.network=dit", "model.unet={}", "model.depth=4"], "model.depth is a U-Net's"),
        (["model.network=dit", "model.unet={}", "model.dit={ widht = 8 }"], "unknown key 'widht' in [model.dit]"),
        (["model.network=dit", "model.unet={}", "model.dit={ width = 30 }"], "DiT width must be a multiple of 4 x num"),
        (["model.network=dit", "model.unet={}", "model.dit={ patch = 3 }"], "data.size must be a multiple of 24"),
    ],
)
def test_a_denoiser_that_cannot_be_is_refused(recipe: Read, changes: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)) as refused:
        build(recipe("diffusion", *changes))
    assert "\n" not in str(refused.value)
