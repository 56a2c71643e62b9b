"""LoRA files of painters: what diffusers computes with them is computed here, and the other way round."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline, StableDiffusion3Pipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file
from tests.interop.adapting import RANK, Here, adapt, agree, kohyas, layers_of, saved, there
from tests.interop.test_denoisers import written
from torch import nn

from diptych.core.lora import Adapter, LoraSettings, adaptable
from diptych.interop.layer_names import layer_places, spots
from diptych.interop.lora import read_lora, write_lora

pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute")

PIPELINES: dict[str, Any] = {
    "sd1": StableDiffusionPipeline,
    "sd2": StableDiffusionPipeline,
    "sdxl": StableDiffusionXLPipeline,
    "sd3": StableDiffusion3Pipeline,
    "sd3.5-medium": StableDiffusion3Pipeline,
    "flux-dev": FluxPipeline,
}


def beginning(kind: str) -> str:
    return "unet" if kind in ("sd1", "sd2", "sdxl") else "transformer"


@pytest.mark.parametrize("kind", PIPELINES)
@pytest.mark.parametrize("settings", [{"lora_alpha": RANK}, {"lora_alpha": 5, "use_rslora": True}])
def test_what_diffusers_wrote_computes_the_same_here(kind: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """Every linear layer and convolution is adapted; alpha and more stand in the file's metadata where it says so."""
    reference = written(kind, tmp_path)
    if len(settings) > 1:
        first, second = sorted(layers_of(reference))[:2]
        settings = settings | {"rank_pattern": {f"^{first}": 2}, "alpha_pattern": {second: 9}}
    tensors = adapt(reference, **settings)
    part = beginning(kind)
    about = reference.peft_config["default"].to_dict() if len(settings) > 1 else None
    PIPELINES[kind].save_lora_weights(
        tmp_path / "lora", **{f"{part}_lora_layers": tensors, f"{part}_lora_adapter_metadata": about}
    )
    here = Here(kind, tmp_path)
    bare = here.bare()
    agree(here.painted(tmp_path / "lora"), there(reference, kind), bare)


@pytest.mark.parametrize("kind", PIPELINES)
def test_diffusers_computes_the_same_with_ours(kind: str, tmp_path: Path) -> None:
    reference, here = written(kind, tmp_path), Here(kind, tmp_path)
    targets = tuple({name.rpartition(".")[2] for name in adaptable(here.network)})
    adapter = Adapter.fresh(nn.ModuleDict(here.parts), LoraSettings(rank=2, alpha=3.0, targets=targets))
    torch.manual_seed(4)
    for layer in adapter.layers.values():
        nn.init.normal_(layer.b, std=0.3)
    write_lora(adapter, here.parts, tmp_path / "ours", card="# ours\n")
    bare = here.bare()
    here.adapters.add("ours", adapter)
    here.adapters.use("ours")
    ours = here.bare()
    found = PIPELINES[kind].lora_state_dict(tmp_path / "ours")
    tensors = found[0] if isinstance(found, tuple) else found
    reference.load_lora_adapter(tensors, prefix=beginning(kind))
    agree(ours, there(reference, kind), bare)
    assert (tmp_path / "ours" / "README.md").read_text() == "# ours\n"
    torch.testing.assert_close(here.painted(tmp_path / "ours"), ours, rtol=0, atol=1e-5)
    write_lora(here.adapters[str(tmp_path / "ours")], here.parts, tmp_path / "again.safetensors")
    again, before = (
        load_file(tmp_path / "again.safetensors"),
        load_file(tmp_path / "ours/pytorch_lora_weights.safetensors"),
    )
    assert {name: tensor.shape for name, tensor in again.items()} == {name: one.shape for name, one in before.items()}
    torch.testing.assert_close(again, before)


@pytest.mark.parametrize("kind", PIPELINES)
def test_every_layer_has_its_names_and_no_two_have_one(kind: str, tmp_path: Path) -> None:
    """Underscores in place of dots are undone by knowing all names: so no two may fall together."""
    reference, here = written(kind, tmp_path), Here(kind, tmp_path)
    known = spots(here.network)
    names = {name.replace(".", "_") for name in layers_of(reference)}
    assert len(names) == len(layers_of(reference))
    assert names <= known.keys()
    assert {layer for name in names for layer in known[name].rows} == set(adaptable(here.network))
    whole = {name: sum(b - a for rows in spot.rows.values() for a, b in rows) for name, spot in known.items()}
    assert whole == {name: spot.height for name, spot in known.items()}
    assert len(layer_places(here.network)) == len(adaptable(here.network))


@pytest.mark.parametrize(
    ("kind", "begin"),
    [("sd1", "lora_unet_"), ("sdxl", "lora_unet_"), ("flux-dev", "lora_transformer_"), ("sd3", "lora_transformer_")],
)
def test_kohyas_names_are_diffusers_with_underscores(kind: str, begin: str, tmp_path: Path) -> None:
    reference = written(kind, tmp_path)
    tensors = adapt(reference, lora_alpha=2)
    here = Here(kind, tmp_path)
    bare = here.bare()
    file = saved(kohyas(tensors, begin, alpha=2), tmp_path / "kohya.safetensors")
    agree(here.painted(file), there(reference, kind), bare)


def test_several_at_once_each_with_its_scale_and_none_leaves_nothing(tmp_path: Path) -> None:
    reference: Any = written("sdxl", tmp_path)
    here = Here("sdxl", tmp_path)
    bare = here.bare()
    for name, seed in (("one", 1), ("two", 2)):
        tensors = adapt(reference, name, seed, lora_alpha=RANK)
        saved({f"unet.{key}": tensor for key, tensor in tensors.items()}, tmp_path / f"{name}.safetensors")
        here.adapters.add(name, read_lora(tmp_path / f"{name}.safetensors", here.parts))
    for scales in ({"one": 0.7, "two": -0.4}, {"two": 1.3}):
        reference.set_adapters(list(scales), weights=list(scales.values()))
        here.adapters.use(scales)
        assert here.adapters.in_use == scales
        agree(here.bare(), there(reference, "sdxl"), bare)
    here.adapters.use(None)
    assert torch.equal(here.bare(), bare)
    here.adapters.use("one", 0.5)
    reference.set_adapters(["one", "two"], weights=[0.5, 0.25])
    here.adapters.merge("two", 0.25)
    assert list(here.adapters.in_use) == ["one"]
    agree(here.bare(), there(reference, "sdxl"), bare)
    here.adapters.merge("one", 0.5)
    agree(here.bare(), there(reference, "sdxl"), bare)
    assert not here.adapters


def test_merging_keeps_how_convolutions_lie(tmp_path: Path) -> None:
    reference = written("sd1", tmp_path)
    tensors = adapt(reference, lora_alpha=RANK)
    here = Here("sd1", tmp_path)
    here.network.to(torch.bfloat16, memory_format=torch.channels_last)
    file = saved({f"unet.{key}": tensor for key, tensor in tensors.items()}, tmp_path / "one.safetensors")
    here.adapters.add("one", read_lora(file, here.parts))
    assert {layer.a.dtype for layer in here.adapters["one"].layers.values()} == {torch.bfloat16}
    here.adapters.merge("one")
    for layer in adaptable(here.network).values():
        assert layer.weight.dtype == torch.bfloat16
        assert layer.weight.ndim == 2 or layer.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_convolution_between_the_two_is_one_with_the_first(tmp_path: Path) -> None:
    """LoCon's lora_mid (Yeh et al. 2023): down of 1 x 1, mid of 3 x 3, up of 1 x 1, one after the other."""
    written("sd1", tmp_path)
    here = Here("sd1", tmp_path)
    torch.manual_seed(1)
    down, mid, up = torch.randn(RANK, 32, 1, 1), torch.randn(RANK, RANK, 3, 3), torch.randn(32, RANK, 1, 1)
    begin = "lora_unet_down_blocks_0_resnets_0_conv1"
    halves = {"lora_down.weight": down, "lora_mid.weight": mid, "lora_up.weight": up, "alpha": torch.tensor(1.5)}
    file = saved({f"{begin}.{half}": tensor for half, tensor in halves.items()}, tmp_path / "locon.safetensors")
    (layer,) = read_lora(file, here.parts).layers.values()
    x = torch.randn(2, 32, 5, 6)
    conv = torch.nn.functional.conv2d
    expected = 1.5 / RANK * conv(conv(conv(x, down), mid, padding=1), up)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-4)
